"""What onnx-ir brings along is put off, and is there when it is wanted."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from genai_stages.worker.light_imports import put_off
put_off()
import onnx_ir as ir
before = "sympy.core" in sys.modules
text = str(ir.SymbolicDim("N") + 1)
import sympy.core
from sympy import Max
print(json.dumps([before, text, "sympy.core" in sys.modules, str(Max(1, 2)), sympy.__name__]))
"""


def test_sympy_is_loaded_by_the_first_computation_and_not_before() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == [False, "N + 1", True, "2", "sympy"]

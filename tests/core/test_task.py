"""How a task's document reaches a pod."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from genai_core.errors import BadInput
from genai_core.tasks.task_file import TaskFile, Toolchain, pack, task_variables


def test_a_long_document_fits_what_linux_starts() -> None:
    """One variable of more than 128 KiB and execve answers E2BIG: the pod would never start."""
    prompts = [os.urandom(150).hex() for _ in range(1500)]
    task = TaskFile(
        id="package/cpu", operation="package", key="0" * 64, code_version=1,
        config={"golden_prompts": prompts}, inputs={},
        toolchain=Toolchain(id="1" * 64, versions={}),
    )  # fmt: skip
    assert len(pack(task)) > 128 * 1024
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run([sys.executable, "-c", ""], env={"GENAI_TASK": pack(task)}, check=True)
    variables = task_variables(task)
    show = (
        "import os, sys; from genai_core.tasks.task_file import packed_task;"
        "sys.stdout.buffer.write(packed_task(os.environ))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", show], env=variables, capture_output=True, check=True
    )
    assert TaskFile.model_validate_json(ran.stdout) == task
    small = task.model_copy(update={"config": {}})
    assert task_variables(small) == {"GENAI_TASK": pack(small)}
    many = [os.urandom(150).hex() for _ in range(8000)]
    huge = task.model_copy(update={"config": {"golden_prompts": many}})
    with pytest.raises(BadInput, match=r"package/cpu: its description takes \d+ bytes"):
        task_variables(huge, where="package/cpu")

"""Child process: QDQ or float ONNX -> DLC, through ONNX Runtime's QNN execution provider.

Request: model (path), soc_model, float16, out (folder). Writes one DLC into that folder, under
a graph name of the provider's own, and replies with its path.

The provider's documented options do not name graphs (it derives the name from a hash of the model's
path), so `rename_child` does that afterwards.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

from genai_core.errors import ToolFailed, UnsupportedOperator
from genai_runtime.htp import child
from genai_runtime.htp.vendor import qnn
from genai_runtime.htp.vendor.provider import register, session_options

_UNSUPPORTED = re.compile(r"\{ name: (?P<name>.*?), type: (?P<type>\w+) \}")
_REFUSED = re.compile(r"OpConfig\(\) failed for node `(?P<name>.*?)` of type `(?P<type>\w+)`")


def fallen_nodes(log: str) -> list[tuple[str, str]]:
    """Nodes that the provider said it could not take: (name, operator), first report only.

    Later reports name its own fused partitions. Where it took none at all it makes no report, but
    the library has named what it refused.
    """
    for line in log.splitlines():
        if "Unsupported nodes in QNN EP:" in line:
            return [(m["name"], m["type"]) for m in _UNSUPPORTED.finditer(line)]
    refused = {m["name"]: m["type"] for m in _REFUSED.finditer(log)}
    return list(refused.items())


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    libraries = qnn.libraries()
    out = Path(request["out"])
    options = {
        "backend_path": str(libraries.htp),
        "qnn_ir_backend_path": str(libraries.ir),
        "dump_qnn_ir_dlc": "1",
        "dump_qnn_ir_dlc_dir": str(out),
        "soc_model": str(request["soc_model"]),
        "enable_htp_fp16_precision": "1" if request["float16"] else "0",
    }
    device = register(libraries)
    problem = ""
    try:
        ort.InferenceSession(
            request["model"], session_options(device, options), enable_fallback=False
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base of their own
        problem = str(error).replace("\n", " ")[:600]
    found = sorted(out.glob("*.dlc"))
    if len(found) != 1 and not problem:
        problem = f"expected one partition, the provider made {len(found)}"
    if problem:
        sys.stderr.flush()
        nodes = fallen_nodes(Path(child.LOG).read_text(encoding="utf-8", errors="replace"))
        if nodes:
            raise UnsupportedOperator(f"{len(nodes)}|{nodes[0][1]}", where=nodes[0][0])
        raise ToolFailed(problem, where=Path(request["model"]).name)
    return {"dlc": str(found[0])}


if __name__ == "__main__":
    child.serve(_serve)

"""Child process: a DLC -> the same DLC with a graph name of our own, and its listing.

Request: dlc, out, graph. The vendor's own calls do the work: systemDlcComposeGraphs replays the
graph into a backend, here libQnnIr, which writes DLCs; a callback in the place of `graphCreate`
passes our name on. Without `out` nothing is written and only the listing is returned.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_uint32, c_uint64, c_void_p
from typing import Any

from genai_core.errors import ToolFailed
from genai_runtime.htp import child, metadata
from genai_runtime.htp.vendor import capi, qnn


class _Serialization(Structure):
    """The writer's graph option: 1 = serialization, of type 1 = flat buffer, to a path.

    Both numbers were found by trying: others write nothing, and the file is checked for.
    """

    _fields_ = [
        ("option", c_uint32),
        ("kind", c_uint64),
        ("path", c_char_p),
        ("more", c_uint64 * 4),
    ]


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    libraries = qnn.libraries()
    metadata.require_pinned(libraries)
    writer = capi.load(libraries.ir)
    system = capi.load_system(libraries.system)
    log, backend, context, dlc = c_void_p(), c_void_p(), c_void_p(), c_void_p()
    writer("logCreate", capi.log_to_stderr, 1, byref(log))
    writer("backendCreate", log, None, byref(backend))
    writer("contextCreate", backend, None, None, byref(context))
    create = capi.GraphCreate(writer.address("graphCreate"))
    handles: list[int] = []
    keep: list[Any] = []
    name = request.get("graph")
    out = request.get("out") or "unused.dlc"

    def named(context: int, given: bytes, _configs: int, result: Any) -> int:
        options, alive = capi.configs([_Serialization(1, 1, str(out).encode())])
        keep.extend(alive)
        chosen = given if name is None else str(name).encode()
        status = create(context, chosen, ctypes.cast(options, c_void_p), result)
        handles.append(result[0])
        return int(status)

    table = capi.with_callbacks(writer, {"graphCreate": capi.GraphCreate(named)}, keep)
    system("systemDlcCreateFromFile", log, str(request["dlc"]).encode(), byref(dlc))
    graphs, count = POINTER(capi.QnnGraphInfo)(), c_uint32()
    system(
        "systemDlcComposeGraphs",
        dlc, None, 0, backend, context, table, 1, byref(graphs), byref(count),
    )  # fmt: skip
    if count.value != 1:
        raise ToolFailed(f"a DLC of one graph was expected, this has {count.value}", where="dlc")
    listing = capi.describe_graph(graphs[0])
    if request.get("out"):
        writer("graphFinalize", c_void_p(handles[0]), None, None)
        listing["name"] = name
    return {"listing": listing}


if __name__ == "__main__":
    child.serve(_serve)

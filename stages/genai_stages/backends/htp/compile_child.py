"""Child process: DLCs -> one context binary, through the QNN C API.

Request: soc_model, weight_sharing, out, graphs [{name, dlc, optimization, vtcm_mb, native_kv}].

systemDlcComposeGraphs replays each DLC into the HTP backend. Two of the backend's functions are
replaced in the copy of its interface that the replay gets: `graphCreate`, to give the graph its
name and options, and for a native KV cache `tensorCreateGraphTensor`, to set the layout.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import POINTER, byref, c_char, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from genai_core.errors import ToolFailed
from genai_runtime.htp import child, metadata
from genai_runtime.htp.vendor import capi, qnn


class _Composer:
    """A backend with one context, into which DLCs are replayed one after another."""

    def __init__(self, libraries: qnn.Libraries, *, soc_model: int, weight_sharing: bool) -> None:
        self.htp = capi.load(libraries.htp)
        self.system = capi.load_system(libraries.system)
        self.keep: list[Any] = []
        self.log, self.backend, self.context = c_void_p(), c_void_p(), c_void_p()
        device = c_void_p()
        self.htp("logCreate", capi.log_to_stderr, 1, byref(self.log))
        self.htp("backendCreate", self.log, None, byref(self.backend))
        options = self._configs([capi.DeviceOption(0, soc_model)])
        self.htp("deviceCreate", self.log, options, byref(device))
        options = self._configs([capi.ContextOption(1, int(weight_sharing))])
        self.htp("contextCreate", self.backend, device, options, byref(self.context))

    def _configs(self, options: list[Any]) -> Any:
        array, alive = capi.configs(options)
        self.keep.extend(alive)
        return array

    def add(self, request: dict[str, Any]) -> dict[str, Any]:
        """Replay and finalize one DLC; returns what the DLC says of its graph, under our name."""
        name = str(request["name"]).encode()
        create = capi.GraphCreate(self.htp.address("graphCreate"))
        make = capi.TensorCreate(self.htp.address("tensorCreateGraphTensor"))
        options = [_optimization(request), _vtcm(request)]
        chosen = [option for option in options if option is not None]
        array = self._configs(chosen)

        def named(context: int, _given: bytes, _configs: int, result: Any) -> int:
            pointer = ctypes.cast(array, c_void_p) if chosen else None
            return int(create(context, name, pointer, result))

        def laid_out(graph: int, tensor: Any) -> int:
            fields = tensor.contents.fields
            outer = fields.type in (capi.INPUT, capi.OUTPUT)
            if outer and (fields.name or b"").startswith((b"past_key_", b"past_value_")):
                fields.data_format = capi.NATIVE_LAYOUT
            return int(make(graph, tensor))

        callbacks: dict[str, Any] = {"graphCreate": capi.GraphCreate(named)}
        if request.get("native_kv"):
            callbacks["tensorCreateGraphTensor"] = capi.TensorCreate(laid_out)
        table = capi.with_callbacks(self.htp, callbacks, self.keep)
        dlc, graph = c_void_p(), c_void_p()
        graphs, count = POINTER(capi.QnnGraphInfo)(), c_uint32()
        self.system("systemDlcCreateFromFile", self.log, str(request["dlc"]).encode(), byref(dlc))
        self.system(
            "systemDlcComposeGraphs",
            dlc, None, 0, self.backend, self.context, table, 1, byref(graphs), byref(count),
        )  # fmt: skip
        if count.value != 1:
            raise ToolFailed(f"expected one graph, found {count.value}", where=str(request["dlc"]))
        self.htp("graphRetrieve", self.context, name, byref(graph))
        try:
            self.htp("graphFinalize", graph, None, None)
        except ToolFailed as error:
            raise ToolFailed(error.message, where=name.decode(), remedy=error.remedy) from error
        return {**capi.describe_graph(graphs[0]), "name": name.decode()}

    def binary(self) -> Any:
        """The serialized context; a buffer that can be written without a copy."""
        size, written = c_uint64(), c_uint64()
        self.htp("contextGetBinarySize", self.context, byref(size))
        buffer = (c_char * size.value)()
        self.htp("contextGetBinary", self.context, buffer, size.value, byref(written))
        return memoryview(buffer)[: written.value]


def _optimization(request: dict[str, Any]) -> capi.GraphOption | None:
    level = request.get("optimization")
    if level is None:
        return None
    type_and_level = int.from_bytes(struct.pack("<If", 3, float(level)), "little")
    return capi.GraphOption(1, 0, (c_uint64 * 6)(type_and_level))


def _vtcm(request: dict[str, Any]) -> capi.GraphOption | None:
    size = request.get("vtcm_mb")
    return None if size is None else capi.GraphOption(3, 0, (c_uint64 * 6)(int(size)))


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    libraries = qnn.libraries()
    metadata.require_pinned(libraries)
    composer = _Composer(
        libraries,
        soc_model=int(request["soc_model"]),
        weight_sharing=bool(request["weight_sharing"]),
    )
    listings = [composer.add(graph) for graph in request["graphs"]]
    Path(request["out"]).write_bytes(composer.binary())
    return {"listings": listings}


if __name__ == "__main__":
    child.serve(_serve)

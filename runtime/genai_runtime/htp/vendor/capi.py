"""The part of the QNN C API that is needed, as ctypes declarations.

The function tables, the tensor and the binary-info structures follow the ctypes declarations that
Qualcomm publishes under BSD-3-Clause-Clear (SPDX header in each file: `lib_provider.py`,
`qnn_types.py`, `system_structs.py` of its on-device model server); which options the HTP backend
takes, and in which structure, is visible in ONNX Runtime's QNN execution provider (MIT). Numbers
that neither states were found by trying and are proved by `self_test` in
`genai_stages.backends.htp.compile` before they are relied upon.

Structures are passed by value and carry no size, so a library of another version reads past them.
`PINNED` is therefore the only version of the wheel with which `load` works.

Only child processes import this: a wrong call ends in a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    byref,
    c_char_p,
    c_float,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from genai_core.errors import ToolFailed

PINNED = "2.7.0"
"""The version of onnxruntime-qnn whose layouts stand below (QAIRT 2.51.0)."""

SLOTS = 75
"""Function pointers in that version's `QnnInterface_t`."""

BACKEND_FUNCTIONS = (
    "propertyHasCapability", "backendCreate", "backendSetConfig", "backendGetApiVersion",
    "backendGetBuildId", "backendRegisterOpPackage", "backendGetSupportedOperations",
    "backendValidateOpConfig", "backendFree",
    "contextCreate", "contextSetConfig", "contextGetBinarySize", "contextGetBinary",
    "contextCreateFromBinary", "contextFree",
    "graphCreate", "graphCreateSubgraph", "graphSetConfig", "graphAddNode", "graphFinalize",
    "graphRetrieve", "graphExecute", "graphExecuteAsync",
    "tensorCreateContextTensor", "tensorCreateGraphTensor",
    "logCreate", "logSetLogLevel", "logFree",
    "profileCreate", "profileSetConfig", "profileGetEvents", "profileGetSubEvents",
    "profileGetEventData", "profileGetExtendedEventData", "profileFree",
    "memRegister", "memDeRegister",
    "deviceGetPlatformInfo", "deviceFreePlatformInfo", "deviceGetInfrastructure", "deviceCreate",
)  # fmt: skip
"""The first slots, in order; the rest is not used."""

SYSTEM_FUNCTIONS = (
    "systemContextCreate", "systemContextGetBinaryInfo", "systemContextGetMetaData",
    "systemContextFree", "systemTensorGetMemoryFootprint", "systemLogCreate",
    "systemLogSetLogLevel", "systemLogFree",
    "systemDlcCreateFromFile", "systemDlcCreateFromBinary", "systemDlcComposeGraphs",
    "systemDlcGetOpMappings", "systemDlcFree",
)  # fmt: skip

INPUT, OUTPUT, NATIVE_LAYOUT = 0, 1, 8
"""Tensor types APP_WRITE and APP_READ; data format HMX_WEIGHT_LAYOUT."""

DTYPES = {
    0x0008: "int8", 0x0016: "int16", 0x0032: "int32", 0x0064: "int64",
    0x0108: "uint8", 0x0116: "uint16", 0x0132: "uint32", 0x0164: "uint64",
    0x0216: "float16", 0x0232: "float32", 0x0264: "float64",
    0x0308: "int8", 0x0316: "int16", 0x0332: "int32",
    0x0408: "uint8", 0x0416: "uint16", 0x0432: "uint32", 0x0508: "bool",
}  # fmt: skip
"""QNN data type -> numpy's name; signed and unsigned fixed point read as integers."""


class Version(Structure):
    """major.minor.patch."""

    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32)]

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Interface(Structure):
    """`QnnInterface_t` of a backend library; passed by value to systemDlcComposeGraphs."""

    _fields_ = [
        ("backend_id", c_uint32),
        ("provider_name", c_char_p),
        ("core_version", Version),
        ("backend_version", Version),
        ("functions", c_void_p * SLOTS),
    ]


class SystemInterface(Structure):
    """`QnnSystemInterface_t`."""

    _fields_ = [
        ("backend_id", c_uint32),
        ("provider_name", c_char_p),
        ("version", Version),
        ("functions", c_void_p * len(SYSTEM_FUNCTIONS)),
    ]


class ScaleOffset(Structure):
    """value = (integer + offset) * scale."""

    _fields_ = [("scale", c_float), ("offset", c_int32)]


class _QuantizationUnion(Union):
    _fields_ = [("scale_offset", ScaleOffset), ("raw", c_uint64 * 4)]


class QuantizeParams(Structure):
    """`Qnn_QuantizeParams_t`; of its encodings only the per-tensor one is read."""

    _fields_ = [
        ("defined", c_uint32),
        ("encoding", c_uint32),
        ("u", _QuantizationUnion),
    ]


class _TensorMemory(Structure):
    _fields_ = [("data", c_void_p), ("size", c_uint32)]


class TensorFields(Structure):
    """`Qnn_TensorV2_t`, of which version 1 is the beginning."""

    _fields_ = [
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("data_format", c_uint32),
        ("data_type", c_uint32),
        ("quantization", QuantizeParams),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memory_type", c_uint32),
        ("memory", _TensorMemory),
        ("dynamic_dimensions", POINTER(c_uint8)),
        ("sparse", c_uint32 * 3),
        ("produced", c_uint8),
    ]


class Tensor(Structure):
    """`Qnn_Tensor_t`."""

    _fields_ = [("version", c_uint32), ("fields", TensorFields)]


class GraphFields(Structure):
    """`QnnSystemContext_GraphInfoV3_t`; versions 1 and 2 are its beginning."""

    _fields_ = [
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(Tensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(Tensor)),
        ("updateable_count", c_uint32),
        ("updateable", POINTER(Tensor)),
        ("blob_info_size", c_uint32),
        ("blob_info", c_void_p),
        ("start_op", c_uint32),
        ("end_op", c_uint32),
    ]


class QnnGraphInfo(Structure):
    """`QnnSystemContext_GraphInfo_t`."""

    _fields_ = [("version", c_uint32), ("fields", GraphFields)]


class BinaryFields(Structure):
    """`QnnSystemContext_BinaryInfoV3_t`."""

    _fields_ = [
        ("backend_id", c_uint32),
        ("build_id", c_char_p),
        ("core_version", Version),
        ("backend_version", Version),
        ("soc_version", c_char_p),
        ("blob_version", Version),
        ("blob_size", c_uint64),
        ("context_tensor_count", c_uint32),
        ("context_tensors", POINTER(Tensor)),
        ("graph_count", c_uint32),
        ("graphs", POINTER(QnnGraphInfo)),
        ("platform", c_void_p),
        ("metadata_size", c_uint32),
        ("metadata", c_void_p),
        ("soc_model", c_uint32),
    ]


class BinaryInfo(Structure):
    """`QnnSystemContext_BinaryInfo_t`."""

    _fields_ = [("version", c_uint32), ("fields", BinaryFields)]


class Config(Structure):
    """`QnnDevice_Config_t`, `QnnContext_Config_t`, `QnnGraph_Config_t`: option 0 is custom."""

    _fields_ = [("option", c_uint32), ("custom", c_void_p)]


class DeviceOption(Structure):
    """`QnnHtpDevice_CustomConfig_t`: option 0 is the SoC's number."""

    _fields_ = [("option", c_uint32), ("value", c_uint64), ("more", c_uint64 * 4)]


class ContextOption(Structure):
    """`QnnHtpContext_CustomConfig_t`: option 1 is weight sharing."""

    _fields_ = [("option", c_uint32), ("value", c_uint64), ("more", c_uint64 * 4)]


class GraphOption(Structure):
    """`QnnHtpGraph_CustomConfig_t`: 1 optimization (type 3: level), 2 precision, 3 VTCM."""

    _fields_ = [("option", c_uint32), ("pad", c_uint32), ("value", c_uint64 * 6)]


Status = c_uint64
LogCallback = CFUNCTYPE(None, c_char_p, c_uint32, c_uint64, c_void_p)
GraphCreate = CFUNCTYPE(Status, c_void_p, c_char_p, c_void_p, POINTER(c_void_p))
TensorCreate = CFUNCTYPE(Status, c_void_p, POINTER(Tensor))

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "logCreate": (LogCallback, c_uint32, POINTER(c_void_p)),
    "backendCreate": (c_void_p, c_void_p, POINTER(c_void_p)),
    "backendGetBuildId": (POINTER(c_char_p),),
    "deviceCreate": (c_void_p, c_void_p, POINTER(c_void_p)),
    "contextCreate": (c_void_p, c_void_p, c_void_p, POINTER(c_void_p)),
    "contextGetBinarySize": (c_void_p, POINTER(c_uint64)),
    "contextGetBinary": (c_void_p, c_void_p, c_uint64, POINTER(c_uint64)),
    "graphCreate": (c_void_p, c_char_p, c_void_p, POINTER(c_void_p)),
    "graphFinalize": (c_void_p, c_void_p, c_void_p),
    "graphRetrieve": (c_void_p, c_char_p, POINTER(c_void_p)),
    "tensorCreateGraphTensor": (c_void_p, POINTER(Tensor)),
    "systemContextCreate": (POINTER(c_void_p),),
    "systemContextGetBinaryInfo": (
        c_void_p, c_void_p, c_uint64, POINTER(POINTER(BinaryInfo)), POINTER(c_size_t),
    ),
    "systemContextFree": (c_void_p,),
    "systemDlcCreateFromFile": (c_void_p, c_char_p, POINTER(c_void_p)),
    "systemDlcComposeGraphs": (
        c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, Interface, c_uint32,
        POINTER(POINTER(QnnGraphInfo)), POINTER(c_uint32),
    ),
}  # fmt: skip


class Functions:
    """The functions of one library, called by their names; a status other than 0 raises."""

    def __init__(self, library: Path, table: Interface | SystemInterface, names: tuple[str, ...]):
        self._library = library.name
        self._table = table
        self._names = names
        self.interface = table

    def address(self, name: str) -> int:
        """The address in the slot of `name`."""
        value = self._table.functions[self._names.index(name)]
        if not value:
            raise ToolFailed(f"the library has no function {name}", where=self._library)
        return int(value)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            ToolFailed: It returned another status than 0.
        """
        status = CFUNCTYPE(Status, *_SIGNATURES[name])(self.address(name))(*arguments)
        if status:
            raise ToolFailed(f"{name} failed with status {status}", where=self._library)


def load(library: Path) -> Functions:
    """The functions of a backend library (libQnnHtp.so, libQnnIr.so)."""
    providers, count = POINTER(POINTER(Interface))(), c_uint32()
    call = ctypes.CDLL(str(library)).QnnInterface_getProviders
    _check(call(byref(providers), byref(count)), count.value, library)
    copy = Interface.from_buffer_copy(providers[0].contents)
    return Functions(library, copy, BACKEND_FUNCTIONS)


def load_system(library: Path) -> Functions:
    """The functions of libQnnSystem.so."""
    providers, count = POINTER(POINTER(SystemInterface))(), c_uint32()
    call = ctypes.CDLL(str(library)).QnnSystemInterface_getProviders
    _check(call(byref(providers), byref(count)), count.value, library)
    return Functions(library, providers[0].contents, SYSTEM_FUNCTIONS)


def _check(status: int, count: int, library: Path) -> None:
    if status or not count:
        raise ToolFailed(f"no interface provider (status {status})", where=library.name)


def configs(options: list[Structure]) -> tuple[Any, list[Any]]:
    """A null-terminated array of pointers to custom configurations, and what must stay alive."""
    wrapped = [Config(0, ctypes.addressof(option)) for option in options]
    array = (c_void_p * (len(wrapped) + 1))(*[ctypes.addressof(w) for w in wrapped], None)
    return array, [*options, *wrapped, array]


def with_callbacks(functions: Functions, callbacks: dict[str, Any], keep: list[Any]) -> Interface:
    """A copy of a backend's interface in which some functions are ours.

    Args:
        functions: The backend.
        callbacks: Function name -> ctypes callback.
        keep: Gets what must stay alive as long as the copy is used.
    """
    copy = Interface.from_buffer_copy(functions.interface)
    for name, callback in callbacks.items():
        copy.functions[BACKEND_FUNCTIONS.index(name)] = ctypes.cast(callback, c_void_p).value
        keep.append(callback)
    return copy


_libc = ctypes.CDLL(None)


def _log_to_stderr(text: bytes, level: int, _time: int, arguments: int) -> None:
    """Format a message of the library (1 error .. 5 debug) to standard error."""
    buffer = ctypes.create_string_buffer(4096)
    _libc.vsnprintf(buffer, c_size_t(len(buffer)), c_char_p(text), c_void_p(arguments))
    sys.stderr.write(f"[{'?EWIVD'[min(level, 5)]}] {buffer.value.decode(errors='replace')}\n")


log_to_stderr = LogCallback(_log_to_stderr)


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Name, shape, dtype, scale, offset (null when not quantized) and layout of a tensor."""
    f = tensor.fields
    q = f.quantization
    quantized = q.defined == 1 and q.encoding == 0 and (f.data_type >> 8) in (3, 4)
    return {
        "name": (f.name or b"").decode(),
        "shape": [int(f.dimensions[i]) for i in range(f.rank)],
        "dtype": DTYPES.get(f.data_type, f"0x{f.data_type:04x}"),
        "scale": float(q.u.scale_offset.scale) if quantized else None,
        "offset": int(q.u.scale_offset.offset) if quantized else None,
        "layout": "flat" if f.data_format == 0 else f"native_{f.data_format}",
    }


def describe_graph(info: QnnGraphInfo) -> dict[str, Any]:
    """Name, inputs and outputs of a graph, in the library's order."""
    f = info.fields
    return {
        "name": (f.name or b"").decode(),
        "inputs": [describe_tensor(f.inputs[i]) for i in range(f.input_count)],
        "outputs": [describe_tensor(f.outputs[i]) for i in range(f.output_count)],
    }

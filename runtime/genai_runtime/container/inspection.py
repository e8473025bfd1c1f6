"""What `genai inspect` tells about a container or an artifact, as JSON values.

Nothing is loaded to be run: a container's facts come from its own JSON files, an ONNX file is read
without its weights, a context binary is described by the vendor's library where that is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from genai_core.canonical import digest_file
from genai_core.container.adapters import merged_folder
from genai_core.container.container_metadata import GraphInfo, TensorInfo
from genai_core.container.manifest import EMULATION_FOLDER, MANIFEST_FILE, REPORT_FILE
from genai_core.container.versions import read_versioned
from genai_core.container.vision_info import VISION_INFO_FILE, VISION_VERSION, VisionInfo
from genai_core.errors import BadInput, BadModel
from genai_core.files.foreign import boundary
from genai_core.names import Backend
from genai_runtime.container import container
from genai_runtime.container.container import Container
from genai_runtime.container.verification import DigestOf

RECORD_FILE = "builder_cache_info.json"


def describe(path: Path, *, digest_of: DigestOf = digest_file) -> dict[str, Any]:
    """Facts of a container's folder, an artifact's folder, an ONNX file or a context binary.

    Args:
        path: What is asked about.
        digest_of: How a container's files are compared with its manifest.

    Raises:
        BadInput: It is none of them.
        BadModel: The file is broken.
        CorruptBlob: A file of a container has other bytes.
        NotRunnableHere: A context binary, and the vendor's library is not installed.
    """
    if (path / MANIFEST_FILE).is_file():
        opened = container.load(path, digest_of=digest_of)
        opened.verify_outside()
        return describe_container(opened)
    if path.is_dir():
        return _artifact(path)
    if path.suffix == ".onnx" and path.is_file():
        return {"kind": "onnx", "sizeBytes": path.stat().st_size, **_dump(onnx_graph(path))}
    if path.suffix == ".bin" and path.is_file():
        from genai_runtime.htp import metadata

        found = metadata.read(path)
        return {"kind": "context binary", **found.model_dump(mode="json", exclude_none=True)}
    raise BadInput(
        "neither a container nor an artifact",
        where=str(path),
        remedy="name a container's or a cache entry's folder, an .onnx or a .bin file",
    )


def describe_container(found: Container) -> dict[str, Any]:
    """Facts of an opened container."""
    manifest = found.manifest
    golden = found.golden()
    index = found.adapters()
    report = found.folder / REPORT_FILE
    return {
        "kind": "container",
        "path": str(found.folder),
        "revision": found.revision,
        "architecture": manifest.architecture,
        "target": manifest.target.model_dump(mode="json", exclude_none=True),
        "model": manifest.model,
        "contextLength": manifest.context_length,
        "vocabSize": found.metadata.vocab_size,
        "splits": manifest.splits,
        "graphs": [graph.model_dump(mode="json") for graph in manifest.graphs],
        "files": {name: file.size for name, file in sorted(manifest.files.items())},
        "sizeBytes": sum(file.size for file in manifest.files.values()),
        "runsHere": found.runnable,
        "runsBy": _executor(found),
        "tokenizer": found.holds("tokenizer.json"),
        "base": manifest.base or found.revision,
        **({"vision": vision} if (vision := _vision(found)) else {}),
        "adapters": [
            f"{name} (rank {entry.rank}, {entry.linears} linears)"
            for name, entry in index.adapters.items()
        ],
        "useCases": [
            f"{name}: " + " + ".join(f"{worn.alpha:g} {worn.name}" for worn in case.adapters)
            for name, case in index.use_cases.items()
        ],
        **(
            {
                "quantUpdatableMode": index.merged,
                "merged": {name: manifest.bytes_below(merged_folder(name)) for name in index.names},
            }
            if index.merged
            else {}
        ),
        "golden": []
        if golden is None
        else [
            {"prompt": entry.prompt, "promptTokens": entry.prompt_tokens, "tokens": entry.tokens}
            for entry in golden.prompts
        ],
        "report": _report(report) if report.is_file() else {},
        "modelFiles": {
            file: {name: _dump(graph) for name, graph in graphs.items()}
            for file, graphs in found.metadata.model_files.items()
        },
    }


def _vision(found: Container) -> str:
    """How it reads pictures; empty where it does not."""
    if not found.holds(VISION_INFO_FILE):
        return ""
    path = found.folder / VISION_INFO_FILE
    info = read_versioned(VisionInfo, path.read_bytes(), newest=VISION_VERSION, where=str(path))
    how = info.preprocessing
    if how.size is not None:
        size = f"{how.size[1]} x {how.size[0]} pixels"
    else:
        size = f"up to {how.most_pixels} pixels, sides in multiples of {how.multiple}"
    count = (
        "as many tokens as the encoder yields" if info.tokens is None else f"{info.tokens} tokens"
    )
    return f"{info.image_token} stands for a picture: {size}, {count}"


def _report(path: Path) -> dict[str, Any]:
    """The members of a report that have the type of one: older ones are not vouched for."""
    with boundary(str(path), kind=BadInput, what="it is no report", remedy="deliver it again"):
        value = json.loads(path.read_bytes())
    kinds = {"verified": str, "stages": dict, "fidelity": dict, "linears": dict, "tools": dict,
             "warnings": list}  # fmt: skip
    given = value if isinstance(value, dict) else {}
    found = {name: given[name] for name, kind in kinds.items() if isinstance(given.get(name), kind)}
    if "warnings" in found:
        found["warnings"] = [text for text in found["warnings"] if isinstance(text, str)]
    return found


def onnx_graph(path: Path) -> GraphInfo:
    """Inputs and outputs of an ONNX file.

    Raises:
        BadModel: It is not one.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
    except Exception as error:  # protobuf and the file system raise their own kinds
        raise BadModel("not an ONNX file", where=str(path)) from error
    constants = {tensor.name for tensor in model.graph.initializer}
    return GraphInfo(
        inputs={v.name: _tensor(v) for v in model.graph.input if v.name not in constants},
        outputs={v.name: _tensor(v) for v in model.graph.output},
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    shape: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in kind.shape.dim
    ]
    return TensorInfo(shape=shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def _executor(found: Container) -> str:
    if found.manifest.target.backend is Backend.CPU:
        return "onnxruntime"
    return "emulator" if (found.folder / EMULATION_FOLDER).is_dir() else "device"


def _artifact(folder: Path) -> dict[str, Any]:
    record = folder / RECORD_FILE
    if not record.is_file():
        raise BadInput(
            f"not a container (no {MANIFEST_FILE}) and not a cache entry (no {RECORD_FILE})",
            where=str(folder),
            remedy="name a container's or a cache entry's folder",
        )
    with boundary(str(record), kind=BadInput, what="not JSON", remedy="pull the entry again"):
        values = json.loads(record.read_bytes())
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD_FILE
    }
    graphs = {name: _dump(onnx_graph(folder / name)) for name in files if name.endswith(".onnx")}
    return {"kind": "artifact", "record": values, "files": files, "graphs": graphs}


def _dump(graph: GraphInfo) -> dict[str, Any]:
    return graph.model_dump(mode="json", exclude_none=True)

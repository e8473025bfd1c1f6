"""One stage by itself: a converted split out of the cache, compiled again.

    split = load("cache/llama32/convert_.../ar1_cl4096_1_of_3.dlc")
    compile(split, config=CompileConfig(backend="HTP", soc_details="chipset:SM8850")).save("a.bin")

The binary is a task of its own in the same store, so the same settings are computed once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_builder.api.compiler.config import CompileConfig
from genai_builder.options import boolean
from genai_cli.engine.local_engine import run_task
from genai_cli.store.entries import read_entry
from genai_core import compile_options
from genai_core.errors import BadInput, InvalidSpec, from_dict
from genai_core.graphs import graph_name
from genai_core.names import Backend, Digest, Key
from genai_core.operations import (
    ChipConfig,
    CompileHtpConfig,
    ConvertHtpConfig,
    operation_of,
)
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Store
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Record
from genai_core.tasks.task_file import TaskFile, TaskFileInput
from genai_core.tasks.toolchain import toolchain_of

__all__ = ["CompiledModel", "Model", "compile_model", "load"]

_GRAPH = "graph."
_OPTIONS = "options."
_OF_THE_SPLIT = ("backend", "chip.", "split.", "graphs", "weight_sharing", "emulation", "float16")
"""Settings of a sidecar that follow from the split, or from soc_details."""


@dataclass(frozen=True)
class Model:
    """A converted split: its DLC, and the record that tells where it came from."""

    path: Path
    record: Record
    store: Store


@dataclass(frozen=True)
class CompiledModel:
    """A context binary in the store.

    Attributes:
        blob: Its digest and size.
    """

    blob: Blob
    store: Store

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the binary to a file, which is replaced when the copy is whole.

        Raises:
            CorruptBlob: The store has other bytes.
        """
        target = Path(path).expanduser().absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self.store.fetch_blob(self.blob, folder / target.name)
            (folder / target.name).replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return target


def load(path: str | os.PathLike[str]) -> Model:
    """A split that a convert task wrote, by the DLC in its cache entry.

    Raises:
        BadInput: There is no such file, or it lies in no entry of a cache.
    """
    file = Path(path).expanduser().absolute()
    if file.suffix != ".dlc" or not file.is_file():
        what = "it is no DLC" if file.exists() else "there is no such file"
        raise BadInput(what, where=str(path), remedy="name the .dlc of a convert entry")
    record = read_entry(file.parent)
    root = file.parent.parent.parent
    if record.operation != "convert" or file.name not in record.outputs:
        raise BadInput(
            f"its folder is an entry of {record.operation}",
            where=str(path),
            remedy="name the .dlc of a convert entry",
        )
    return Model(file, record, DirectoryStore(root))


def compile_model(model: Model, *, config: CompileConfig) -> CompiledModel:
    """Compile one split for a chip.

    Args:
        model: What `load` gave.
        config: Chip, and what a sidecar's `config` adds: `options.*`, `native_kv`.

    Raises:
        InvalidSpec: A setting that is unknown here.
        GenAIError: The vendor's library refused the graph.
    """
    task = _task(model, config)
    result = run_task(task, model.store)
    if result.error is not None:
        raise from_dict(result.error)
    stored = model.store.get_record(task.operation, Key(task.key))
    assert stored is not None, "a task that succeeded has committed its record"
    output = next(o for name, o in stored.record.outputs.items() if name.endswith(".bin"))
    return CompiledModel(Blob(sha256=output.sha256, size=output.size), model.store)


def _task(model: Model, config: CompileConfig) -> TaskFile:
    converted = ConvertHtpConfig.model_validate(model.record.config)
    operation = operation_of("compile", Backend.HTP)
    toolchain = toolchain_of(operation)
    chip = config.chip()
    settings = _settings(config)
    wanted = CompileHtpConfig(
        chip=ChipConfig(soc_model=chip.soc_model, dsp_arch=chip.dsp_arch),
        split=converted.split,
        graphs=(converted.graph,),
        float16=bool(model.record.facts.get("float", False)),
        **settings,
    ).model_dump(mode="json")
    files = {
        name: TaskFileInput(sha256=output.sha256, size=output.size, semantic=output.semantic)
        for name, output in model.record.outputs.items()
    }
    name = graph_name(converted.graph.ar, converted.graph.cl)
    key = task_key(
        operation.name,
        operation.code_version,
        toolchain_id=Digest(toolchain.id),
        config=wanted,
        inputs={name: {path: Digest(file.identity) for path, file in files.items()}},
    )
    return TaskFile(
        id=f"compile/{name}_{key[:12]}",
        operation=operation.name,
        backend=Backend.HTP,
        key=key,
        code_version=operation.code_version,
        config=wanted,
        inputs={name: files},
        toolchain=toolchain,
        slug=model.record.model,
        source=model.record.source,
        threads=os.cpu_count() or 1,
    )


def _settings(config: CompileConfig) -> dict[str, Any]:
    options: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for name, value in (config.model_extra or {}).items():
        if name.startswith(_OPTIONS):
            options[name.removeprefix(_OPTIONS)] = str(value)
        elif name == "native_kv":
            settings[name] = boolean(value, name)
        elif name == "options" and value in ({}, "{}"):
            continue
        elif not name.startswith(_OF_THE_SPLIT):
            raise InvalidSpec("unknown", where=f"CompileConfig.{name}", remedy="leave it out")
    compile_options.parse(options, where="CompileConfig.options")
    return {**settings, "options": options}

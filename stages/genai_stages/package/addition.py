"""A later adapter in a container that stands: files beside the base, and a new revision.

The folder that is given is a copy, changed in place. Nothing of the base is read but the graph of
its model (or the core graph, where the caller has found it), and nothing of it changes: the
manifest's `base` stays, and on cpu the revision is the one that a build with this adapter would
have made. The graphs of a Snapdragon container have inputs of one rank and one range, and an
adapter beyond these is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from genai_core.canonical import digest_file
from genai_core.container.adapter_addition import AdditionAnswer, AdditionRequest
from genai_core.container.adapters import (
    ADAPTERS_FOLDER,
    INDEX_FILE,
    AdapterIndex,
    file_of,
    read_index,
)
from genai_core.container.genie_adapters import genie_bytes, genie_names, with_adapters
from genai_core.container.manifest import (
    GENIE_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    ManifestFile,
    Report,
)
from genai_core.container.outside import report_bytes
from genai_core.errors import BadAdapter, DriftError, GenAIError
from genai_core.facts import AdapterInputs, LoraBranch
from genai_core.files.foreign import is_failure
from genai_core.sources.source_files import CONFIG_ROLE
from genai_runtime.container import container
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import CPU_MODEL_FILE
from genai_runtime.cpu.adapter_files import read_adapter as read_weights
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.htp.adapters import BranchFeeds
from genai_stages.graph.core_graph import read_core
from genai_stages.input_folders import read_json
from genai_stages.lora.bounds import check_bounds
from genai_stages.lora.container_places import places_of_container, places_of_inputs
from genai_stages.lora.importing import Imported, import_adapter
from genai_stages.lora.modules import LinearPlace, places_of
from genai_stages.lora.readers.aimet_adapter import holds_aimet
from genai_stages.lora.readers.forms import read_adapter
from genai_stages.lora.trained_on import other_base
from genai_stages.package.container_adapters import entry_of
from genai_stages.package.genie_adapters import write_genie_adapters
from genai_stages.package.use_cases import Asked, record_worn

__all__ = ["answer", "seal"]

log = logging.getLogger(__name__)

_TRIED_TOKENS = 4


def answer(request: AdditionRequest) -> AdditionAnswer:
    """Do what is asked; every error becomes an answer."""
    try:
        return _add(request)
    except GenAIError as error:
        return AdditionAnswer(error=error.as_dict())
    except BaseException as error:
        if not is_failure(error):
            raise
        log.exception("the adapter could not be added")
        failure = GenAIError(f"{type(error).__name__}: {error}", where=request.name)
        return AdditionAnswer(error=failure.as_dict())


def _add(request: AdditionRequest) -> AdditionAnswer:
    began = time.monotonic()
    folder = Path(request.container)
    opened = container.load(folder, digest_of=None)  # its caller compared the copy
    opened.check_takes_adapters()
    index = read_index(folder)
    (folder / ADAPTERS_FOLDER).mkdir(exist_ok=True)
    path = folder / file_of(request.name)
    nameless = request.core is None
    try:
        places, branches = _places(request, opened)
    except BadAdapter as error:
        return AdditionAnswer(error=error.as_dict(), nameless=nameless)
    # What is wrong with its file, the core graph does not mend.
    adapter = read_adapter(Path(request.adapter), branches, request.name)
    try:
        made = import_adapter(adapter, places, path)
    except BadAdapter as error:
        return AdditionAnswer(error=error.as_dict(), nameless=nameless)
    check_bounds(adapter, max_rank=index.max_rank, target_modules=index.target_modules)
    index = index.with_adapter(request.name, entry_of(path, file_of(request.name)))
    (folder / INDEX_FILE).write_bytes(index.to_bytes())
    if opened.metadata.adapter_inputs is not None:
        _onto_graphs(opened, index, request.name, opened.metadata.adapter_inputs)
    seal(folder)
    _try(folder, request.name)
    _note(folder, request.name, made, seconds=time.monotonic() - began)
    sealed = container.manifest_of(folder)
    other = other_base(adapter.base, folder / CONFIG_ROLE)
    return AdditionAnswer(
        facts={
            "revision": sealed.revision(),
            "base": sealed.base or sealed.revision(),
            "rank": made.rank,
            "linears": made.linears,
            "trainedOn": adapter.base,
            "warnings": [] if other is None else [other],
        }
    )


def _onto_graphs(
    opened: container.Container, index: AdapterIndex, name: str, inputs: AdapterInputs
) -> None:
    """Check that the graphs hold an adapter, and write what Genie reads of it.

    Raises:
        BadInput: Its rank, a linear or a value is beyond what they were built for.
    """
    folder, ranges = opened.folder, opened.metadata.adapter_ranges
    weights = read_weights(folder / index.adapters[name].file)
    BranchFeeds(inputs, {name: weights}, ranges=ranges).of([AdapterUse(name)])
    path = folder / GENIE_FILE
    if not opened.holds(GENIE_FILE):
        return
    write_genie_adapters(folder, index, inputs, ranges=ranges)
    config = with_adapters(read_json(path), genie_names(index), alpha=inputs.alpha)
    path.write_bytes(genie_bytes(config))


def _places(
    request: AdditionRequest, opened: container.Container
) -> tuple[Sequence[LinearPlace], Sequence[LoraBranch]]:
    """The linears, and the branches that the model's source had, which its facts alone tell."""
    if request.core is None:
        if holds_aimet(Path(request.adapter)):
            raise BadAdapter(
                "it names LoRA inputs of the model's source, which a container does not have",
                where=request.name,
            )
        inputs = opened.metadata.adapter_inputs
        if inputs is not None:
            return places_of_inputs(inputs), ()
        return places_of_container(opened.folder / CPU_MODEL_FILE), ()
    model, facts = read_core(Path(request.core))
    return places_of(model, facts), facts.lora


def seal(folder: Path) -> None:
    """Write the manifest anew for what lies below `adapters/`."""
    manifest = container.manifest_of(folder)
    files = {
        path.relative_to(folder).as_posix(): ManifestFile(
            sha256=digest_file(path), size=path.stat().st_size
        )
        for path in sorted((folder / ADAPTERS_FOLDER).rglob("*"))
        if path.is_file()
    }
    genie = folder / GENIE_FILE
    if GENIE_FILE in manifest.files:
        entry = ManifestFile(sha256=digest_file(genie), size=genie.stat().st_size)
        manifest = manifest.model_copy(update={"files": {**manifest.files, GENIE_FILE: entry}})
    (folder / MANIFEST_FILE).write_bytes(manifest.with_adapter_files(files).to_bytes())


def _try(folder: Path, name: str) -> None:
    """Run a few tokens with the adapter, and the golden prompts of the base, which it records.

    Raises:
        DriftError: It yields NaN or infinity.
    """
    opened = container.load(folder, digest_of=None)  # its caller compared the copy
    if not opened.runnable:
        return
    session = open_session(opened, worn=[AdapterUse(name)])
    try:
        count = min(_TRIED_TOKENS, session.vocab_size, session.context_length)
        logits = session.forward(np.arange(count))
        recorded = opened.golden()
        if recorded is not None and np.isfinite(logits).all():
            asked = Asked.again(recorded, opened.stop_tokens())
            answers = {**recorded.worn, name: record_worn(session, asked)}
            (folder / GOLDEN_FILE).write_bytes(recorded.with_worn(answers).to_bytes())
    finally:
        session.close()
    if not np.isfinite(logits).all():
        raise DriftError("the container yields NaN or infinity with it", where=name)


def _note(folder: Path, name: str, made: Imported, *, seconds: float) -> None:
    """Put what was measured into the report; one that cannot be read stays as it is."""
    path = folder / REPORT_FILE
    notes: dict[str, Any] = {
        "drift": made.drift,
        "modules": made.modules,
        "rank": made.rank,
        "seconds": round(seconds, 2),
    }
    with suppress(OSError, ValueError):
        report = Report.model_validate_json(path.read_bytes())
        stages = {**report.stages, f"lora_import/{name}": notes}
        path.write_bytes(report_bytes(report.model_copy(update={"stages": stages})))

"""The manifest of a finished folder: every file of the identity, with its digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genai_core.canonical import digest_file, digest_json
from genai_core.container.manifest import (
    Manifest,
    ManifestFile,
    ManifestTarget,
    outside_identity,
)
from genai_core.facts import ModelFacts
from genai_core.names import Backend, Digest
from genai_core.operations import PackageConfig
from genai_stages.graph.core_graph import FACTS_FILE, MODEL_FILE
from genai_stages.input_folders import core_folder, find_file
from genai_stages.package.contents import Contents
from genai_stages.stage import Inputs


def identify(
    inputs: Inputs, config: PackageConfig, out: Path, *, facts: ModelFacts, contents: Contents
) -> Manifest:
    """The manifest of what lies in `out`; files that were measured are outside of it."""
    encodings = find_file(inputs, "*.encodings")
    model: dict[str, Any] = {
        "core": _core(core_folder(inputs)),
        "layers": facts.layers,
        "hiddenSize": facts.hidden_size,
        "vocabSize": facts.vocab_size,
        "parameters": facts.parameters,
    }
    if encodings is not None:
        model["encodings"] = digest_file(encodings)
    if contents.children:
        model["children"] = {
            str(ar): {"core": _core(folder), "weights": config.child_weights[str(ar)]}
            for ar, folder in contents.children.items()
        }
    chip = config.chip
    made = Manifest(
        model=model,
        architecture=facts.architecture,
        target=ManifestTarget(
            name=config.target,
            backend=config.backend,
            soc_model=chip.soc_model if chip else None,
            dsp_arch=chip.dsp_arch if chip else None,
            precision=contents.precision,
            library=contents.library,
            native_kv=contents.native_kv,
            device_verified=None if config.backend is Backend.CPU else False,
        ),
        context_length=config.context_length,
        graphs=contents.graphs,
        splits=max(1, len(config.splits)),
        files={
            name: ManifestFile(sha256=digest_file(path), size=path.stat().st_size)
            for name, path in _identity_files(out)
        },
    )
    if not config.adapters:
        return made
    return made.with_base()


def _core(folder: Path) -> Digest:
    return digest_json([digest_file(folder / MODEL_FILE), digest_file(folder / FACTS_FILE)])


def _identity_files(out: Path) -> list[tuple[str, Path]]:
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
    named = [(path.relative_to(out).as_posix(), path) for path in paths]
    return [(name, path) for name, path in named if not outside_identity(name)]

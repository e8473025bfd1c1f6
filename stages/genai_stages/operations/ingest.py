"""A source model -> the core graph, checked against the source.

Input `source`: a folder of roles (`model.onnx` and its data, `config.json`, `model.encodings`,
tokenizer files, `tokens.npy` or `tokens.txt`, `calibration.*`). Output: `model.onnx`,
`facts.json`, `weights/`, `source/` (the source's own graph over those weights),
`encodings/model.encodings`, `assets/`, `tokens/`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from genai_core.errors import BadModel
from genai_core.facts import LoraBranch, ModelFacts
from genai_core.files.foreign import boundary
from genai_core.operations import IngestConfig
from genai_stages.aimet.checks import refuse_infinite_masks
from genai_stages.aimet.model import EncodingSet
from genai_stages.architectures.detect import detect
from genai_stages.architectures.family import Family
from genai_stages.graph.core_graph import read_facts, write_facts
from genai_stages.ingest.admission.refuse_source import refuse_source
from genai_stages.ingest.head_to_core import head_to_core
from genai_stages.ingest.model_files import (
    check_stop_tokens,
    check_tokens,
    copy_assets,
    copy_encodings,
    only_file,
    own_entries,
    read_beside,
    refuse_pointers,
)
from genai_stages.ingest.output.compare_source import compare_source
from genai_stages.ingest.output.keep_source import keep_source
from genai_stages.ingest.source.lora_branches import find_branches, take_off
from genai_stages.ingest.source.source_model import SourceModel, read_config, read_source
from genai_stages.ingest.source_to_core import source_to_core, stated_vocabulary
from genai_stages.ingest.token_map import write_token_map
from genai_stages.stage import Context, Inputs, StageResult

_CONFIG = "it has a value that fits no model"
_GRAPH = "its graph has a form that is not known here"
_REMEDY = "export the model again; if it stays so, report it with the task's log"


def run(inputs: Inputs, config: IngestConfig, out: Path, context: Context) -> StageResult:
    """Write the core graph and what goes along with it.

    Raises:
        BadModel: The source is broken, no decoder-only language model, or disagrees with itself.
        BadEncodings: Encodings of another model.
        DriftError: The core graph computes something else than the source.
    """
    folder = inputs["source"]
    path = only_file(folder, ".onnx")
    if path is None:
        raise BadModel(
            "there is no ONNX file", where=str(folder.name), remedy="export the model to ONNX"
        )
    refuse_pointers(folder)
    settings = read_config(folder)
    # A head's model_type may be "eagle": its layers are Llama's.
    usual = config.architecture or ("llama" if config.head else None)
    with boundary("config.json", what=_CONFIG):
        family, warning = detect(settings, usual)
    # Whatever can be told from small files comes before what takes minutes on a large model.
    encodings = read_beside(folder)
    source = read_source(path, settings)
    if config.head:
        return _head(source, family, encodings, out=out, threads=context.threads)
    branches: tuple[LoraBranch, ...] = ()
    with boundary(path.name, what=_GRAPH, remedy=_REMEDY, detailed=True):
        if config.branches:
            branches = find_branches(source.stripped())
            source = source.changed(partial(take_off, branches=branches))
        refuse_source(source)
        entries = None if encodings is None else own_entries(encodings, source)
        stated = stated_vocabulary(source)
    foreign = [] if stated is None else _check_vocabulary(folder, stated)
    with boundary(path.name, what=_GRAPH, remedy=_REMEDY, detailed=True):
        ingested = source_to_core(
            source, family, out, warnings=() if warning is None else (warning,)
        )
        if branches:
            ingested = dataclasses.replace(ingested, facts=_with_branches(out, branches))
    if ingested.facts.vocab_size != stated:
        foreign = _check_vocabulary(folder, ingested.facts.vocab_size)
    if encodings is not None:
        masked = [
            attention.roles["masked"]
            for attention in ingested.facts.attention
            if "masked" in attention.roles
        ]
        refuse_infinite_masks(encodings, masked)
        copy_encodings(folder, out)
        del encodings
    assets = copy_assets(folder, out)
    with boundary(path.name, what="it cannot be run part by part", remedy=_REMEDY, detailed=True):
        compared = compare_source(
            ingested.source, ingested.inputs, ingested.ropes, out, threads=context.threads
        )
        kept = keep_source(source, out, ingested.inputs)
    facts = ingested.facts
    return StageResult(
        facts={
            "architecture": facts.architecture,
            "layers": facts.layers,
            "vocabSize": facts.vocab_size,
            "parameters": facts.parameters,
            "sourceForm": facts.source_form,
        },
        notes={
            "drift": compared.drift,
            "comparedParts": compared.parts,
            "comparedPasses": [list(sizes) for sizes in compared.passes],
            "encodings": entries,
            "sourceBytes": {"pointing": kept.bytes_pointing, "copied": kept.bytes_copied},
            "assets": assets,
        },
        warnings=(*facts.warnings, *foreign),
    )


def _head(
    source: SourceModel,
    family: Family,
    encodings: EncodingSet | None,
    *,
    out: Path,
    threads: int,
) -> StageResult:
    """Write an EAGLE head's core graph; its facts say what it reads and gives back."""
    path, folder = source.path, source.path.parent
    with boundary(path.name, what=_GRAPH, remedy=_REMEDY, detailed=True):
        refuse_source(source, head=True)
        entries = None if encodings is None else own_entries(encodings, source)
        ingested = head_to_core(source, family, out, threads=threads)
    if encodings is not None:
        copy_encodings(folder, out)
    facts = ingested.facts
    assert facts.head is not None
    table = write_token_map(folder, out, facts.head.tokens, facts.vocab_size)
    assets = copy_assets(folder, out)
    return StageResult(
        facts={
            "architecture": facts.architecture,
            "layers": facts.layers,
            "vocabSize": facts.vocab_size,
            "parameters": facts.parameters,
            "sourceForm": facts.source_form,
        },
        notes={"drift": ingested.drift, "encodings": entries, "assets": assets, "tokenMap": table},
        warnings=tuple(facts.warnings),
    )


def _with_branches(out: Path, branches: tuple[LoraBranch, ...]) -> ModelFacts:
    return write_facts(out, read_facts(out).model_copy(update={"lora": branches}))


def _check_vocabulary(folder: Path, vocab_size: int) -> list[str]:
    check_stop_tokens(folder, vocab_size)
    return check_tokens(folder, vocab_size)

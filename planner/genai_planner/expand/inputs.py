"""Inputs that several operations take, and how weights files are chosen.

Each stage gets the weights of its own part alone: that is what lets splits be worked on in bounded
memory on different machines, and what makes a change in one layer leave the others' keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.container.manifest import TOKEN_MAP_FILE
from genai_core.names import MODEL, SourceName, TaskId
from genai_planner.expand.context import PlanContext
from genai_planner.plan import Inputs, Selection
from genai_planner.shape import ModelShape, group_file

__all__ = [
    "INGEST",
    "calibration",
    "core",
    "encodings",
    "ingest_id",
    "ingested",
    "package_inputs",
    "part_weights",
    "scored",
    "whole",
    "yardstick",
]

INGEST = TaskId("ingest")


def ingest_id(source: SourceName) -> TaskId:
    """The task that reads a source: `ingest`, or `ingest/child:decode`."""
    return INGEST if source == MODEL else TaskId(f"{INGEST}/{source}")


def ingested(*patterns: str, source: SourceName = MODEL) -> tuple[Selection, ...]:
    """Files of what ingest made of a model."""
    return (Selection(ingest_id(source), patterns),)


def whole(task: TaskId) -> tuple[Selection, ...]:
    """Everything that a task left."""
    return (Selection(task, ("*",)),)


def core(source: SourceName = MODEL) -> tuple[Selection, ...]:
    """The whole core graph with its facts and weights."""
    return ingested("model.onnx", "facts.json", "weights/*", source=source)


def encodings(source: SourceName = MODEL) -> tuple[Selection, ...]:
    """The source's encodings."""
    return ingested("encodings/*", source=source)


def calibration(source: SourceName = MODEL) -> Inputs:
    """What gaps: Calibrate needs besides the core graph: tokens or text, the tokenizer."""
    return {
        "calibration": ingested("tokens/calibration.*", source=source),
        "assets": ingested("assets/*", source=source),
    }


def yardstick(source: SourceName = MODEL) -> tuple[Selection, ...]:
    """The core graph, and the source's own over the same weights."""
    return ingested("model.onnx", "facts.json", "weights/*", "source/*", source=source)


def scored(context: PlanContext) -> Inputs:
    """What fidelity reads besides what was compiled: the yardstick, and the text that is scored."""
    sources: Inputs = {"core": yardstick(), "assets": ingested("assets/*")}
    if context.model.has_encodings:
        sources["encodings"] = encodings()
    if (tokens := context.model.tokens) is not None:
        sources["tokens"] = ingested(f"tokens/{tokens}")
    return sources


def package_inputs(source: SourceName = MODEL, *, head: bool = False) -> Inputs:
    """What every container takes from ingest; an EAGLE head's its token map too."""
    files = ["facts.json", "model.onnx", "assets/*", "measured.json"]
    files += [f"{TOKEN_MAP_FILE}*"] if head else []  # a head of the whole vocabulary has none
    return {"ingest": ingested(*files, source=source)}


def part_weights(
    shape: ModelShape, layers: Iterable[int], *, embedding: bool, lm_head: bool
) -> tuple[str, ...]:
    """The weights files of some layers, of the embedding and of the head.

    A tied lm_head lies in the embedding's file.
    """
    groups = ["embed"] if embedding or (lm_head and shape.tied) else []
    groups += [f"layer_{i:03d}" for i in layers]
    if lm_head:
        groups.append("head")
    # A group may have no file of its own: a head without a norm whose matrix is tied.
    return tuple(shape.files.get(g, group_file(g)) for g in groups if g in shape.files)

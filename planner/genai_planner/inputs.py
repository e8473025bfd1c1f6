"""Inputs that several operations take from ingest, and how weights files are chosen.

Each stage gets the weights of its own part alone: that is what lets splits be worked on in bounded
memory on different machines, and what makes a change in one layer leave the others' keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.names import TaskId
from genai_planner.graph import Selection
from genai_planner.shape import ModelShape, group_file

__all__ = ["INGEST", "assets", "calibration", "core", "encodings", "ingested", "part_weights"]

INGEST = TaskId("ingest")


def ingested(*patterns: str) -> tuple[Selection, ...]:
    """Files of ingest's output."""
    return (Selection(INGEST, patterns),)


def core() -> tuple[Selection, ...]:
    """The whole core graph with its facts and weights."""
    return ingested("model.onnx", "facts.json", "weights/*")


def encodings() -> tuple[Selection, ...]:
    """The source's encodings."""
    return ingested("encodings/*")


def assets() -> tuple[Selection, ...]:
    """Tokenizer, configuration, chat template."""
    return ingested("assets/*")


def calibration() -> dict[str, tuple[Selection, ...]]:
    """What gaps: Calibrate needs besides: the whole model, tokens or text, the tokenizer."""
    return {
        "core": core(),
        "calibration": ingested("tokens/calibration.*"),
        "assets": assets(),
    }


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

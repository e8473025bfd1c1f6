"""Finds what an operation needs among its input folders, by what lies in them.

A folder is known by its files, not by the name that a planner gave to the input: the core graph
has `facts.json`, encodings end in `.encodings`, fragments bring `fragment.json`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_core.files.foreign import decoded
from genai_runtime.evaluate import read_pieces
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.aimet.model import EncodingSet
from genai_stages.aimet.read import read_encodings
from genai_stages.graph.core_graph import FACTS_FILE
from genai_stages.stage import Inputs

TEXT_PIECE = 128
"""Tokens of a piece that calibration text is cut into."""


def core_folder(inputs: Inputs) -> Path:
    """Folder of the core graph.

    Raises:
        BadModel: No input has one.
    """
    found = folders_with(inputs, FACTS_FILE)
    if not found:
        raise BadModel("no input is a core graph", where=FACTS_FILE, remedy="run ingest first")
    return found[0]


def folders_with(inputs: Inputs, file: str) -> list[Path]:
    """The input folders that hold a file of this name, by the inputs' names."""
    return [inputs[name] for name in sorted(inputs) if (inputs[name] / file).is_file()]


def find_file(inputs: Inputs, *names: str) -> Path | None:
    """The first file with one of these names (patterns) in any input."""
    for pattern in names:
        for name in sorted(inputs):
            for path in sorted(inputs[name].rglob(pattern)):
                if path.is_file():
                    return path
    return None


def encodings_of(inputs: Inputs, *, of: Collection[str] | None = None) -> EncodingSet | None:
    """The source's encodings; None where it has none. `of` as in `read_encodings`.

    Raises:
        BadEncodings: The file is unreadable.
    """
    path = find_file(inputs, "*.encodings")
    return None if path is None else read_encodings(path, of=of)


def token_pieces(inputs: Inputs, name: str) -> NDArray[np.integer] | None:
    """Token ids [pieces, length] of an input: a .npy, or a text file and the model's tokenizer.

    Raises:
        BadInput: The input holds neither, or its text is shorter than a piece.
        BadModel: It is text and the model has no tokenizer.
    """
    folder = inputs.get(name)
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) != 1:
        raise BadInput(f"expected one file, found {len(files)}", where=name)
    if files[0].suffix == ".npy":
        return read_pieces(files[0])
    tokenizer_file = find_file(inputs, "tokenizer.json")
    if tokenizer_file is None:
        raise BadModel(
            "text, but the model has no tokenizer.json",
            where=files[0].name,
            remedy="add the tokenizer to the model, or give token ids as .npy",
        )
    try:
        text = decoded(files[0].read_bytes())
    except UnicodeDecodeError as error:
        raise BadInput("neither .npy nor UTF-8 text", where=files[0].name) from error
    tokens = TextTokenizer(tokenizer_file).encode(text)
    pieces = tokens.size // TEXT_PIECE
    if pieces < 1:
        raise BadInput(
            f"{tokens.size} tokens are less than a piece of {TEXT_PIECE}",
            where=files[0].name,
            remedy="give more text",
        )
    return tokens[: pieces * TEXT_PIECE].reshape(pieces, TEXT_PIECE)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object.

    Raises:
        BadModel: The file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"not JSON: {error}", where=path.name) from error
    if not isinstance(value, dict):
        raise BadModel("not a JSON object", where=path.name)
    return value

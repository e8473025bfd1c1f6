"""What lies in a source model's folder besides the graph: encodings, tokenizer, token files.

The folder holds roles: `model.onnx` with its data, `model.encodings`, `config.json`, the files of
the tokenizer under their usual names, `tokens.npy` or `tokens.txt`, and `calibration.*`. A folder
as the user has it does too, as long as there is only one candidate for each role.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from genai_core.errors import BadEncodings, BadInput, BadModel
from genai_core.files.foreign import boundary, decoded, plain_text, refuse_pointer
from genai_core.sources.source_files import ASSETS as OTHER_ASSETS
from genai_core.sources.source_files import CONFIG_ROLE
from genai_runtime.generate import stated_stop_tokens
from genai_runtime.tokenizer_trial import try_tokenizer
from genai_stages.aimet.checks import refuse_foreign, refuse_infinite_masks
from genai_stages.aimet.model import EncodingSet
from genai_stages.aimet.read import read_encodings
from genai_stages.ingest.admission.check_scales import refuse_misfits
from genai_stages.ingest.admission.weight_axes import computed_names, weight_axes
from genai_stages.ingest.source.source_model import SourceModel

ASSETS = (CONFIG_ROLE, *OTHER_ASSETS)
"""What goes along to the container, where it is there."""
_NUMPY = b"\x93NUMPY"
_TEXTS = {".json", ".jinja", ".txt"}
ENCODINGS_FILE = "encodings/model.encodings"


def only_file(folder: Path, suffix: str) -> Path | None:
    """`model` + suffix, or the only file with that suffix; None = there is none.

    Raises:
        BadModel: Several ONNX files could be meant.
        BadEncodings: Several encodings could be meant.
    """
    usual = folder / f"model{suffix}"
    found = sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
    if len(found) > 1 and not (suffix == ".onnx" and usual in found):
        kind, field = (
            (BadModel, "model.onnx") if suffix == ".onnx" else (BadEncodings, "model.encodings")
        )
        names = ", ".join(path.name for path in found)
        raise kind(
            f"it holds {len(found)} files that could be meant: {names}",
            where=folder.name,
            remedy=f"name one of them in {field}",
        )
    return usual if usual in found else found[0] if found else None


def copy_assets(folder: Path, out: Path) -> list[str]:
    """Copy tokenizer, configuration and chat template to `assets/`, token files to `tokens/`."""
    copied = []
    pairs = [(folder / name, out / "assets" / name) for name in ASSETS]
    pairs += [(folder / name, out / "tokens" / name) for name in ("tokens.npy", "tokens.txt")]
    pairs += [(path, out / "tokens" / path.name) for path in sorted(folder.glob("calibration.*"))]
    for source, target in pairs:
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in _TEXTS:
                # What drives the container expects UTF-8 without a mark in front.
                with boundary(source.name):
                    target.write_bytes(plain_text(source.read_bytes()))
            else:
                shutil.copyfile(source, target)
            copied.append(source.name)
    return copied


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder in which Git LFS left pointers.

    Raises:
        BadModel: Names the first of them.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            refuse_pointer(path, where=path.relative_to(folder).as_posix())


def check_stop_tokens(folder: Path, vocab_size: int) -> None:
    """Check that the tokens that end an answer are tokens of the model.

    Raises:
        BadModel: One is no number, or beyond the vocabulary: it would never end an answer.
    """
    file, tokens = stated_stop_tokens(folder)
    wrong = sorted(token for token in tokens if not 0 <= token < vocab_size)
    if wrong:
        raise BadModel(
            f"{wrong[0]} is no token of the model, which knows {vocab_size}, and would never end "
            "an answer",
            where=f"{file}: eos_token_id",
            remedy="put the ids of the model's own end tokens there",
        )


def read_beside(folder: Path) -> EncodingSet | None:
    """The encodings beside a model; None where there are none.

    Raises:
        BadEncodings: They are unreadable, several, or made with an infinite mask.
    """
    path = only_file(folder, ".encodings")
    if path is None:
        return None
    # Grids of weights are checked and not kept: names and activations are what ingest needs.
    encodings = read_encodings(path, of=())
    refuse_infinite_masks(encodings)
    return encodings


def own_entries(encodings: EncodingSet, source: SourceModel) -> int:
    """How many entries name a tensor of the model.

    Raises:
        BadInput: Most name tensors of another model.
        BadEncodings: The scales of one do not fit its tensor.
    """
    graph = source.model.graph
    names = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    names.update(str(value.name) for node in graph for value in node.outputs)
    refuse_foreign(encodings, names, model=source.path.name)
    refuse_misfits(encodings, weight_axes(graph), computed_names(graph))
    return sum(name in names for name in encodings.listed)


def copy_encodings(folder: Path, out: Path) -> None:
    """Copy the encodings beside a model to `encodings/`."""
    path = only_file(folder, ".encodings")
    assert path is not None
    target = out / ENCODINGS_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def check_tokens(folder: Path, vocab_size: int) -> list[str]:
    """Check that tokenizer and token files belong to a vocabulary of this size.

    Tokens that were added behind the vocabulary may be foreign to a model: the tokenizer of a
    family has the images' tokens, and its smallest member reads no images.

    Returns:
        Warnings.

    Raises:
        BadModel: The tokenizer cannot be used, or its vocabulary has ids that the model does not
            know.
        BadInput: A token file has.
    """
    tokenizer = folder / "tokenizer.json"
    ids, added = _tokenizer_ids(tokenizer)
    highest = max(ids, default=-1)
    if highest >= vocab_size:
        raise BadModel(
            f"its highest id is {highest}, the model knows {vocab_size} tokens",
            where="tokenizer.json",
            remedy="put the model's own tokenizer beside it",
        )
    if tokenizer.is_file():
        try_tokenizer(tokenizer)
    for path, least in [(folder / "tokens.npy", 2), (folder / "calibration.npy", 1)]:
        if path.is_file():
            _check_token_file(path, vocab_size, least)
    foreign = [text for text, index in added.items() if index >= vocab_size]
    if not foreign:
        return []
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    said = f"tokenizer.json has the added token {foreign[0]}{more}, the model knows {vocab_size}"
    return [f"{said} tokens: text with it is refused"]


def _check_token_file(path: Path, vocab_size: int, least: int) -> None:
    """Refuse what holds no pieces of at least so many tokens, or ids of another vocabulary."""
    with path.open("rb") as stream:
        if stream.read(len(_NUMPY)) != _NUMPY:  # numpy speaks of pickles then
            raise BadInput(
                "it is no NumPy array", where=path.name, remedy="save token ids with numpy.save"
            )
    with boundary(
        path.name,
        kind=BadInput,
        what="it is no NumPy array",
        remedy="save token ids with numpy.save",
    ):
        tokens = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(tokens, np.ndarray):
        raise BadInput(
            "it is an archive of arrays",
            where=path.name,
            remedy="save token ids as one array with numpy.save",
        )
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        raise BadInput(
            f"it has type {tokens.dtype} and shape {list(tokens.shape)}, not integers "
            "[pieces, length]",
            where=path.name,
            remedy="save token ids as an integer array of two axes",
        )
    if tokens.shape[0] < 1 or tokens.shape[1] < least:
        raise BadInput(
            f"it has the shape {list(tokens.shape)}: no piece of {least} tokens or more",
            where=path.name,
            remedy="give more text",
        )
    lowest, highest = int(tokens.min()), int(tokens.max())
    if highest >= vocab_size or lowest < 0:
        raise BadInput(
            f"it has the id {lowest if lowest < 0 else highest}, the model knows {vocab_size} "
            "tokens",
            where=path.name,
            remedy="make it with the model's own tokenizer",
        )


def _tokenizer_ids(path: Path) -> tuple[list[int], dict[str, int]]:
    """Ids of the vocabulary, and those of the tokens that were added to it."""
    if not path.is_file():
        return [], {}
    refuse_pointer(path)
    with boundary(path.name, what="it is not JSON", remedy="copy the file again"):
        content: Any = json.loads(decoded(path.read_bytes()))
    model = content.get("model") if isinstance(content, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = [len(vocab) - 1] if isinstance(vocab, list) else []
    if isinstance(vocab, dict):
        ids = [index for index in vocab.values() if isinstance(index, int)]
    listed = content.get("added_tokens") if isinstance(content, dict) else None
    added = {
        str(one.get("content")): one["id"]
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and isinstance(one.get("id"), int)
    }
    return ids, added

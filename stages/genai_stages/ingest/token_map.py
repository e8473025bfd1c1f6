"""Which token of the model each id of a head's smaller vocabulary stands for.

Two forms come in: a JSON array (or object) of ids, as Genie's `draft-token-map` has it, and public
EAGLE-3 heads' `d2t` in a .safetensors file, which counts from the draft's own id. One goes out: a
JSON array, the model's id by the draft's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from genai_core.container.manifest import TOKEN_MAP_FILE
from genai_core.errors import BadModel
from genai_core.files.foreign import boundary, decoded
from genai_core.names import TOKEN_MAP_ROLE

_REMEDY = "name the map that was made with the head, in spec.speculation[0].draftTokenMap"


def write_token_map(folder: Path, out: Path, tokens: int, draft_tokens: int) -> int | None:
    """Check the map beside a head and write it; how many ids it has, None = there is none.

    Args:
        folder: Of the source.
        out: Of the core graph.
        tokens: Ids of the model.
        draft_tokens: Ids of the head's logits.

    Raises:
        BadModel: It is missing where the vocabularies differ, or not one of these two.
    """
    path = next(iter(sorted(folder.glob(f"{TOKEN_MAP_ROLE}.*"))), None)
    if path is None:
        if tokens == draft_tokens:
            return None
        raise BadModel(
            f"the head's logits have {draft_tokens} ids, its embedding table {tokens}, and there "
            "is no map from the one to the other",
            where="spec.speculation[0].draftTokenMap",
            remedy="name the head's d2t: a .json array of ids, or its .safetensors file",
        )
    where = "spec.speculation[0].draftTokenMap"
    ids = (
        _from_safetensors(path, where) if path.suffix == ".safetensors" else _from_json(path, where)
    )
    if len(ids) != draft_tokens:
        raise BadModel(
            f"it has {len(ids)} entries, the head's logits have {draft_tokens} ids",
            where=where,
            remedy=_REMEDY,
        )
    outside = [(draft, one) for draft, one in enumerate(ids) if not 0 <= one < tokens]
    if outside:
        draft, one = outside[0]
        raise BadModel(
            f"draft id {draft} stands for {one}, outside the model's {tokens} tokens",
            where=where,
            remedy=_REMEDY,
        )
    seen: dict[int, int] = {}
    for draft, one in enumerate(ids):
        if one in seen:
            raise BadModel(
                f"draft ids {seen[one]} and {draft} both stand for token {one}",
                where=where,
                remedy=_REMEDY,
            )
        seen[one] = draft
    (out / TOKEN_MAP_FILE).write_text(json.dumps(ids, separators=(",", ":")) + "\n")
    return len(ids)


def _from_json(path: Path, where: str) -> list[int]:
    with boundary(where, what="it is not JSON", remedy=_REMEDY):
        content: Any = json.loads(decoded(path.read_bytes()))
    if isinstance(content, dict):
        keys = sorted(content, key=lambda key: int(key) if key.isdecimal() else -1)
        if keys != [str(number) for number in range(len(keys))]:
            raise BadModel(
                "its keys are not the draft's ids from 0 on", where=where, remedy=_REMEDY
            )
        content = [content[key] for key in keys]
    if not isinstance(content, list) or not all(type(one) is int for one in content):
        raise BadModel("it is no array of token ids", where=where, remedy=_REMEDY)
    return content


def _from_safetensors(path: Path, where: str) -> list[int]:
    try:
        with safe_open(path, framework="np") as opened:
            if "d2t" not in opened.keys():  # noqa: SIM118 - it is no dictionary
                raise BadModel("it has no tensor d2t", where=where, remedy=_REMEDY)
            offsets = np.asarray(opened.get_tensor("d2t"))
    except (OSError, SafetensorError) as error:
        raise BadModel(
            f"it cannot be read as .safetensors: {error}", where=where, remedy=_REMEDY
        ) from error
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise BadModel(
            f"d2t has type {offsets.dtype} and shape {list(offsets.shape)}, not integers [ids]",
            where=where,
            remedy=_REMEDY,
        )
    return [int(one) for one in offsets.astype(np.int64) + np.arange(offsets.size)]

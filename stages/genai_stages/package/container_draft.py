"""The draft model of a container: a container of its own in the folder `draft`."""

from __future__ import annotations

from pathlib import Path

from genai_core.container.manifest import DRAFT_FOLDER, MANIFEST_FILE
from genai_core.errors import BadModel
from genai_runtime import container
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.twin_folder import place

__all__ = ["place_draft"]


def place_draft(source: Path, out: Path) -> None:
    """Put what the draft's manifest names, and the manifest, below a container's folder.

    Args:
        source: The draft's container, as its package task left it.
        out: The container's folder; its tokenizer stands there already.

    Raises:
        BadModel: The draft's token ids mean other text.
    """
    draft = container.load(source)
    if not _same_tokens(draft.tokenizer(), TextTokenizer.of_folder(out)):
        raise BadModel(
            "the draft model has another tokenizer, so its token ids mean other text",
            where="spec.speculation[0].source",
            remedy="take a draft model of the same family, with its tokenizer.json",
        )
    for name in (*draft.manifest.files, MANIFEST_FILE):
        place(source / name, out / DRAFT_FOLDER / name)


def _same_tokens(draft: TextTokenizer | None, model: TextTokenizer | None) -> bool:
    if draft is None or model is None:
        return draft is model
    return draft.vocabulary() == model.vocabulary()

"""What guesses for a container: a container of its own in the folder `draft`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genai_core.container.container_metadata import GraphInfo, HeadInfo
from genai_core.container.manifest import DRAFT_FOLDER, MANIFEST_FILE
from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_core.operations import HeadConfig
from genai_runtime.container import container
from genai_runtime.container.container import CPU_MODEL_FILE, Container
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.backends.cpu.cpu_model import hidden_state_name
from genai_stages.twin_folder import place

__all__ = ["head_info", "place_draft"]

_WHERE = "spec.speculation[0].source"
_OTHER = "take a head that was made for this model"


def head_info(facts: ModelFacts, head: HeadConfig | None) -> HeadInfo | None:
    """How an EAGLE head is driven; None of any other model."""
    if head is None or facts.head is None:
        return None
    return HeadInfo(
        version=head.version,
        hidden_states=[hidden_state_name(layers) for layers in head.hidden_states],
        features=facts.head.features,
        features_size=facts.head.features_size,
        hidden=facts.head.hidden,
        feedback=facts.head.feedback,
        tokens=facts.head.tokens,
    )


def place_draft(
    source: Path, out: Path, facts: ModelFacts, files: Mapping[str, Mapping[str, GraphInfo]]
) -> None:
    """Put what the draft's manifest names, and the manifest, below a container's folder.

    Args:
        source: The draft's container, as its package task left it.
        out: The container's folder; its tokenizer stands there already.
        facts: Of the container's model.
        files: Its graphs, by file and name.

    Raises:
        BadModel: The draft's token ids mean other text, or a head reads what the model has not.
    """
    draft = container.load(source)
    own = draft.tokenizer()
    if draft.metadata.head is not None:
        _check_head(draft.metadata.head, facts, files[CPU_MODEL_FILE]["model"])
    # Heads come without a tokenizer: theirs is the model's.
    if (own is not None or draft.metadata.head is None) and not _same_tokens(
        own, TextTokenizer.of_folder(out)
    ):
        raise BadModel(
            f"the {_kind(draft)} has another tokenizer, so its token ids mean other text",
            where=_WHERE,
            remedy="take a draft model of the same family, with its tokenizer.json"
            if draft.metadata.head is None
            else _OTHER,
        )
    for name in (*draft.manifest.files, MANIFEST_FILE):
        place(source / name, out / DRAFT_FOLDER / name)


def _check_head(head: HeadInfo, facts: ModelFacts, model: GraphInfo) -> None:
    """Refuse a head of another model, by its shapes."""
    if head.tokens != facts.vocab_size:
        raise BadModel(
            f"the head's embedding table has {head.tokens} tokens, the model {facts.vocab_size}",
            where=_WHERE,
            remedy=_OTHER,
        )
    widths = [model.outputs[name].shape[-1] for name in head.hidden_states]
    given = sum(width for width in widths if isinstance(width, int))
    if given != head.features_size:
        raise BadModel(
            f"the head reads hidden states of {head.features_size} values, the model gives "
            f"{given} ({' + '.join(map(str, widths))})",
            where=_WHERE,
            remedy=_OTHER,
        )


def _kind(draft: Container) -> str:
    return "draft model" if draft.metadata.head is None else "EAGLE head"


def _same_tokens(draft: TextTokenizer | None, model: TextTokenizer | None) -> bool:
    if draft is None or model is None:
        return draft is model
    return draft.vocabulary() == model.vocabulary()

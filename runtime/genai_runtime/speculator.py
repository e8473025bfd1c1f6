"""A configuration as something that guesses, for one target; what would not be right is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genai_core.errors import BadInput
from genai_runtime.container import container as containers
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.speculation.chained import Chained
from genai_runtime.speculation.config import SpeculativeConfig
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.eagle import Eagle, Head
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import Method
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.ssd import Ssd
from genai_runtime.speculation.suffix import Suffix

_EAGLE_3 = 3

OpenDraft = Callable[[Container, int | None], Executor]
"""A container and threads (None = the target's) -> what runs it."""


def open_speculation(
    config: SpeculativeConfig,
    target: Executor,
    *,
    steady: bool,
    tokenizer_of: Container | None = None,
    open_draft: OpenDraft | None = None,
    load_draft: Callable[[Path], Container] = containers.load,
    where: str = "speculation",
) -> Speculation:
    """What a configuration asks for.

    Args:
        config: The configuration.
        target: The model that verifies.
        steady: Its bits do not depend on how tokens are cut into passes (`Steadiness.chunks`).
        tokenizer_of: The target's container; needed with a draft model.
        open_draft: Opens the draft model; likewise.
        load_draft: Reads its container's folder.
        where: For messages.

    Raises:
        BadInput: Answers would differ from plain ones and `lossy` was not asked for; the method
            needs trees and the executor takes none; the draft is no container, or of another
            tokenizer; the model was not trained to forecast, or fewer tokens.
    """
    if not steady and not config.lossy:
        raise BadInput(
            "with this container on this machine a token's numbers depend on how many are computed "
            "at once, so answers would differ from plain ones",
            where=where,
            remedy='build the container with cpuPrecision Int8, or accept it with "lossy": true',
        )
    methods: list[Method] = []
    for name in config.names:
        if name == "ngram":
            least, most = config.lookup
            methods.append(Ngram(least=least, most=most))
        elif name == "suffix":
            methods.append(
                Suffix(
                    max_tree_depth=config.suffix_decoding_max_tree_depth,
                    max_cached_requests=config.suffix_decoding_max_cached_requests,
                    max_spec_factor=config.suffix_decoding_max_spec_factor,
                    min_token_prob=config.suffix_decoding_min_token_prob,
                )
            )
        elif name == "ssd":
            methods.append(_ssd(config, target, tokenizer_of, where))
        elif name == "lookahead":
            if not target.trees:
                raise BadInput(
                    "lookahead needs a model whose passes may hold a tree; this one has sliding "
                    "windows, or runs in the emulator",
                    where=where,
                    remedy="use ngram or suffix",
                )
            methods.append(Lookahead(window=config.window, ngram=config.ngram, gcap=config.gcap))
        else:
            assert tokenizer_of is not None
            assert open_draft is not None
            make = _draft_model if name == "draft_model" else _eagle
            methods.append(make(config, target, tokenizer_of, (load_draft, open_draft), where))
    return Speculation(
        methods[0] if len(methods) == 1 else Chained(methods),
        most=config.most,
        least=config.min_speculative_tokens,
        adaptive=config.adaptive,
        typical=config.typical,
    )


def _ssd(
    config: SpeculativeConfig, target: Executor, container: Container | None, where: str
) -> Ssd:
    forecast = None if container is None else container.metadata.forecast
    if forecast is None:
        raise BadInput(
            "the container's model was not trained to forecast",
            where=where,
            remedy="build one that was, with spec.speculation and method Ssd, or use ngram or "
            "suffix",
        )
    known = target.token_count - target.vocab_size, target.prefix
    if not target.trees or known != (forecast.tokens, forecast.prefix):
        raise BadInput(
            f"ssd needs passes with {forecast.tokens} forecast tokens and a prefix of "
            f"{forecast.prefix} places; here there are {known[0]} and {known[1]}"
            + ("" if target.trees else ", and no trees"),
            where=where,
            remedy="run the cpu container of the same build",
        )
    if config.most > forecast.tokens:
        raise BadInput(
            f"the model forecasts {forecast.tokens} tokens, num_speculative_tokens is "
            f"{config.most}",
            where=where,
            remedy=f"ask for {forecast.tokens} at most",
        )
    return Ssd(target, forecasts=config.most)


def _draft_model(
    config: SpeculativeConfig,
    target: Executor,
    tokenizer_of: Container,
    drafts: tuple[Callable[[Path], Container], OpenDraft],
    where: str,
) -> DraftModel:
    load_draft, open_draft = drafts
    draft = _carried(config, tokenizer_of, load_draft, "draft model", where)
    if draft.metadata.head is not None:
        raise BadInput(
            "it is an EAGLE head, which guesses from hidden states",
            where=f"{where}: {draft.folder}",
            remedy="use the method eagle",
        )
    if not _same_tokens(draft, tokenizer_of):
        raise BadInput(
            f"its tokenizer is not that of {tokenizer_of.folder}, so its token ids mean other text",
            where=f"{where}: {draft.folder}",
            remedy="take a draft model of the same family",
        )
    executor = open_draft(draft, config.threads)
    return DraftModel(executor, vocab_size=target.vocab_size)


def _eagle(
    config: SpeculativeConfig,
    target: Executor,
    tokenizer_of: Container,
    drafts: tuple[Callable[[Path], Container], OpenDraft],
    where: str,
) -> Eagle:
    load_draft, open_draft = drafts
    draft = _carried(config, tokenizer_of, load_draft, "EAGLE head", where)
    head = draft.metadata.head
    where = f"{where}: {draft.folder}"
    if head is None:
        raise BadInput(
            "it is a draft model, no EAGLE head", where=where, remedy="use the method draft_model"
        )
    if "eagle3" in config.names and head.version != _EAGLE_3:
        raise BadInput(f"the head is of EAGLE-{head.version}", where=where, remedy="use eagle")
    if list(target.states) != head.hidden_states:
        raise BadInput(
            f"the head reads {', '.join(head.hidden_states)}; the model gives "
            f"{', '.join(target.states) or 'no hidden states'} out",
            where=where,
            remedy="build both together, with spec.speculation",
        )
    sizes = sum(target.states.values()), target.vocab_size
    if sizes != (head.features_size, head.tokens):
        raise BadInput(
            f"the head was made for hidden states of {head.features_size} values and "
            f"{head.tokens} tokens, the model has {sizes[0]} and {sizes[1]}",
            where=where,
            remedy="take a head that was made for this model",
        )
    token_map = draft.token_map()
    executor = open_draft(draft, config.threads)
    return Eagle(
        Head(executor, head.features, head.hidden, head.feedback, token_map),
        vocab_size=target.vocab_size,
    )


def _carried(
    config: SpeculativeConfig,
    target: Container,
    load_draft: Callable[[Path], Container],
    what: str,
    where: str,
) -> Container:
    """What guesses: in a container of its own, or the one that the target's carries."""
    if config.model is not None:
        return load_draft(Path(config.model))
    own = target.draft()
    if own is None:
        raise BadInput(
            f"the container carries no {what}",
            where=where,
            remedy="name one with --draft (of genai run) or model, or build it with "
            "spec.speculation",
        )
    return own


def _same_tokens(first: Container, second: Container) -> bool:
    """Whether every id means the same; without tokenizers, whether there are as many."""
    one, other = first.tokenizer(), second.tokenizer()
    if one is None or other is None:
        sizes = first.metadata.vocab_size, second.metadata.vocab_size
        return one is other and sizes[0] == sizes[1]
    return one.vocabulary() == other.vocabulary()

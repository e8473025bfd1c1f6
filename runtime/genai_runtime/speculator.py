"""A configuration as something that guesses, for one target; what would not be right is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genai_core.errors import BadInput
from genai_runtime import container as containers
from genai_runtime.container import Container
from genai_runtime.executor import Executor
from genai_runtime.speculation.chained import Chained
from genai_runtime.speculation.config import SpeculativeConfig
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import Method
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.suffix import Suffix

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
            tokenizer.
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
            methods.append(
                _draft_model(config, target, tokenizer_of, (load_draft, open_draft), where)
            )
    return Speculation(
        methods[0] if len(methods) == 1 else Chained(methods),
        most=config.most,
        least=config.min_speculative_tokens,
        adaptive=config.adaptive,
    )


def _draft_model(
    config: SpeculativeConfig,
    target: Executor,
    tokenizer_of: Container,
    drafts: tuple[Callable[[Path], Container], OpenDraft],
    where: str,
) -> DraftModel:
    load_draft, open_draft = drafts
    own = tokenizer_of.draft() if config.model is None else None
    if config.model is None and own is None:
        raise BadInput(
            "the container carries no draft model",
            where=where,
            remedy="name one with --draft (of genai run) or model, or build it with "
            "spec.speculation",
        )
    draft = own or load_draft(Path(str(config.model)))
    if not _same_tokens(draft, tokenizer_of):
        raise BadInput(
            f"its tokenizer is not that of {tokenizer_of.folder}, so its token ids mean other text",
            where=f"{where}: {draft.folder}",
            remedy="take a draft model of the same family",
        )
    executor = open_draft(draft, config.threads)
    return DraftModel(executor, vocab_size=target.vocab_size)


def _same_tokens(first: Container, second: Container) -> bool:
    """Whether every id means the same; without tokenizers, whether there are as many."""
    one, other = first.tokenizer(), second.tokenizer()
    if one is None or other is None:
        sizes = first.metadata.vocab_size, second.metadata.vocab_size
        return one is other and sizes[0] == sizes[1]
    return one.vocabulary() == other.vocabulary()

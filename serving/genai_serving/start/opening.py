"""From options to an engine that serves a container, before anybody may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from genai_core.container.adapters import AdapterIndex
from genai_core.container.vision_info import VISION_INFO_FILE
from genai_core.errors import CorruptBlob
from genai_core.files.digest_cache import FileCache
from genai_core.names import Backend
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_encoder, open_executor
from genai_runtime.container.container import Container
from genai_runtime.steadiness import Steadiness, try_out, try_out_prompts
from genai_serving.adapters.loaded import AT_REST
from genai_serving.adapters.served import ServedAdapters
from genai_serving.adapters.start import HeldAdapters, open_with_adapters
from genai_serving.api.model import ServedModel, sampling_defaults
from genai_serving.api.service import Service
from genai_serving.engine import Engine, ServingLimits
from genai_serving.metrics import AdapterLoad, Metrics
from genai_serving.start.golden import replay_first
from genai_serving.start.memory import cache_budget, kept_bytes, sequences_budget, whole_bytes
from genai_serving.start.options import Options
from genai_serving.start.prefix_folder import prefix_files_of, scope_text
from genai_serving.start.served_names import name_of, refuse_adapters, served_adapters
from genai_serving.start.speculating import about_speculation, keep_beginnings, speculation_of
from genai_serving.start.system_prompts import SystemPrompts
from genai_serving.structure.grammars import Grammars

__all__ = ["OpenedServer", "load_container", "open_server"]

_DRAFTS_SHARE = 8
"""Of what is left beside one sequence, a draft model's beginnings take one part at most."""


@dataclass(frozen=True)
class OpenedServer:
    """What was opened.

    Attributes:
        container: That is served.
        engine: It runs.
        service: What its endpoints share.
        metrics: That count.
        held: Its adapters; None = it can have none.
        prompts: That are read before the first request.
    """

    container: Container
    engine: Engine
    service: Service
    metrics: Metrics
    held: HeldAdapters | None
    prompts: SystemPrompts

    @property
    def model(self) -> ServedModel:
        """What requests name."""
        return self.service.model


def load_container(options: Options) -> tuple[Container, FileCache]:
    """The container, and the digests that are known of its files.

    Raises:
        BadInput: It is none.
        CorruptBlob: It is another one than is to be served.
    """
    files = FileCache(options.cache / "files.sqlite")
    options.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = containers.load(options.container, digest_of=files.digest)
    if options.revision and opened.revision != options.revision:
        raise CorruptBlob(
            f"it is {opened.revision}, and {options.revision} is to be served",
            where=str(options.container),
        )
    return opened, files


def open_server(
    options: Options, opened: Container, files: FileCache, *, say: Callable[[str], None]
) -> OpenedServer:
    """An engine for a container.

    Args:
        options: See there.
        opened: As `load_container`.
        files: As well.
        say: Gets what a person wants to read.

    Raises:
        BadInput: The container cannot be served with these options.
    """
    name = options.model_name or name_of(opened)
    adapters = served_adapters(opened, name, options.adapters)
    if options.adapter_rank == 0:
        refuse_adapters(options)
        adapters = AdapterIndex()
    # Before the memory that is left is looked at.
    sees = opened.holds(VISION_INFO_FILE)
    encoder = open_encoder(opened, threads=options.threads) if sees else None
    executor, held = open_with_adapters(
        opened,
        adapters,
        columns=options.adapter_rank,
        cache_mib=options.adapter_mib,
        coming=options.admin is not None,
        left=cache_budget(),
        open_executor=partial(
            open_executor,
            opened,
            cache=options.cache / "cpu",
            threads=options.threads,
            context_length=options.context_length,
            doubled=options.exact,
            digest_of=files.digest,
        ),
    )
    if options.golden:
        replay_first(opened, executor, adapters, held, say)
    if held is not None:
        held.lay_in_first()
    emulated = opened.manifest.target.backend is Backend.HTP
    # The static graphs of a twin round by their sizes; trying that takes minutes there.
    unsteady = emulated or not options.exact
    steadiness = Steadiness(chunks=False, neighbours=False) if unsteady else try_out(executor)
    keeps = steadiness.all or (not emulated and not options.exact and try_out_prompts(executor))
    speculation, draft = speculation_of(options, opened, executor, steadiness, files)
    cache_bytes = sequences_budget(
        options, executor, speculation, 0 if held is None else held.later
    )
    prefix_bytes = kept_bytes(options, cache_bytes) if keeps else 0
    metrics = Metrics(name)
    model = ServedModel(
        name=name,
        revision=opened.revision,
        context_length=executor.context_length,
        tokenizer=opened.tokenizer(),
        template=ChatTemplate.of_container(opened),
        stop_tokens=opened.stop_tokens(),
        steadiness=steadiness,
        emulated=emulated,
        created=int(opened.folder.stat().st_mtime),
        adapters=ServedAdapters(adapters),
        prefix_cache=prefix_bytes > 0,
        exact=options.exact,
        speculation=about_speculation(options, speculation, steadiness),
        defaults=sampling_defaults(opened.folder),
    )
    if options.system_prompts and not keeps:
        say("system prompts are not kept: see below")
    prompts = SystemPrompts.of(
        model,
        options.system_prompts if keeps else (),
        executor=executor,
        speculation=speculation,
    )
    whole = whole_bytes(executor, speculation)
    prompts.check(cache_bytes, prefix_bytes, whole)
    drafts_bytes = 0
    if speculation is not None and draft is not None and keeps:
        share = speculation.cache_bytes(model.context_length) / whole
        left = cache_bytes - prompts.bytes - whole
        drafts_bytes = max(0, min(int(prefix_bytes * share), left // _DRAFTS_SHARE))
        keep_beginnings(options, speculation, draft, drafts_bytes)
    limits = ServingLimits(
        sequences=options.sequences,
        tokens=max(options.tokens, options.sequences),
        waiting=options.waiting,
        cache_bytes=cache_bytes - prompts.bytes - drafts_bytes,
        prefix_bytes=prefix_bytes - prompts.bytes,
    )
    vocab_size = executor.vocab_size
    engine = Engine(
        executor,
        limits,
        observer=metrics,
        speculation=speculation,
        adapters=None if held is None else held.cache,
        pinned=() if held is None else list(adapters.adapters),
        exact=options.exact,
        prefix_files=prefix_files_of(
            options,
            opened,
            executor,
            scope_text=lambda scope: scope_text(scope, model.adapters.content),
        )
        if keeps
        else None,
    )
    metrics.load = lambda: engine.load
    metrics.guessed = lambda: engine.guessed
    metrics.gain = lambda: engine.gain
    metrics.adapters = lambda: _adapter_load(engine, held, model.adapters)
    grammars = Grammars(model.tokenizer, vocab_size, model.stop_tokens)
    pictures = None
    if encoder is not None:
        from genai_serving.api.request_pictures import RequestPictures

        pictures = RequestPictures(encoder)
    service = Service(
        engine,
        model,
        limits,
        vocab_size,
        grammars,
        seconds=options.request_seconds,
        pictures=pictures,
    )
    return OpenedServer(opened, engine, service, metrics, held, prompts)


def _adapter_load(engine: Engine, held: HeldAdapters | None, served: ServedAdapters) -> AdapterLoad:
    entries, states = served.entries, engine.adapter_states
    rank = max((entry.rank for entry in entries.values()), default=16)
    most = 0 if held is None else held.room.columns // max(rank, 1)
    worn = {name: use.name for name in entries for use in served.worn(name) or ()}
    running, waiting = ([served.public(name) for name in worn] for worn in engine.worn)
    return AdapterLoad(
        most,
        {name: states.get(internal, AT_REST) for name, internal in worn.items()},
        0 if held is None else held.cache.bytes,
        running,
        waiting,
    )

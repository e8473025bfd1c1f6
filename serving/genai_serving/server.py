"""Opens a container and serves it until told to end."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from genai_core.container.adapters import AdapterIndex
from genai_core.errors import BadInput, CorruptBlob
from genai_core.files.digest_cache import FileCache
from genai_core.names import Backend
from genai_runtime import container as containers
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.container import Container
from genai_runtime.executor import Executor
from genai_runtime.speculation.config import SpeculativeConfig
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculator import open_speculation
from genai_runtime.steadiness import Steadiness, try_out
from genai_serving.adapters.administration import AdminServer
from genai_serving.adapters.loaded import AT_REST
from genai_serving.adapters.served import ServedAdapters
from genai_serving.adapters.sources import AdapterSources
from genai_serving.adapters.start import HeldAdapters, open_with_adapters
from genai_serving.api.admin import AdapterAdmin
from genai_serving.api.api_keys import ApiKeys
from genai_serving.api.app import admin_application, application
from genai_serving.api.declaration import declare, read_declaration
from genai_serving.api.local_names import is_loopback
from genai_serving.api.model import ServedModel, sampling_defaults
from genai_serving.api.service import Service
from genai_serving.connections import Connections, room_for
from genai_serving.draining import DrainingServer
from genai_serving.engine import Engine, ServingLimits
from genai_serving.golden import replay_golden
from genai_serving.memory import cache_budget
from genai_serving.metrics import AdapterLoad, Metrics
from genai_serving.scheduler import mebibytes
from genai_serving.structure.grammars import Grammars

_CONNECTIONS = 1024
_MARGIN = 64
"""Connections beyond those whose requests may run or wait: some are always on their way."""


@dataclass(frozen=True)
class AdminOptions:
    """Of the port on which adapters come and go.

    Attributes:
        port: 0 = any free one.
        tokens: Every request on it must bring one of them.
        folder: Below which containers lie that adapters may come from; None = the served one's.
        declared: File with the adapters that are served from the start; where it names one, the
            container may carry none, and one that cannot be had ends nothing.
    """

    port: int
    tokens: ApiKeys
    folder: Path | None = None
    declared: Path | None = None


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        container: Its folder.
        cache: A folder of this user's own for prepared graphs and digests.
        host: Where it listens.
        port: 0 = any free one.
        api_keys: See `api.app.application`.
        model_name: What requests call it; empty = the container's folder.
        context_length: Tokens of prompt and answer; None = the container's.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        sequences: That run at once.
        waiting: That may wait.
        tokens: Of a pass.
        cache_mib: Keys and values of all sequences; None = what the memory allows.
        prefix_mib: What of it may keep beginnings of prompts; None = all that nobody uses.
        request_seconds: That an answer may take; 0 = for ever.
        drain_seconds: That running answers get when the server ends.
        drain_delay_seconds: Before that, for which it still listens; see `draining`.
        keys_folder: Further keys, see `api.keys`.
        adapters: Those of the container that are served; empty = all.
        adapter_rank: Ranks that a pass holds; 0 = no adapters; None = see `adapters.start`.
        adapter_mib: Memory of adapters, those of a pass included; None = see there.
        revision: That the container must be; empty = any.
        golden: Its recorded prompts must be answered as recorded before the first request.
        admin: How adapters come and go while it runs; None = they do not.
        speculation: How tokens are guessed; None = they are not.
    """

    container: Path
    cache: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    model_name: str = ""
    context_length: int | None = None
    threads: int = 0
    sequences: int = 8
    waiting: int = 256
    tokens: int = 128
    cache_mib: int | None = None
    prefix_mib: int | None = None
    request_seconds: float = 0.0
    drain_seconds: float = 30.0
    drain_delay_seconds: float = 0.0
    keys_folder: Path | None = None
    adapters: tuple[str, ...] = ()
    adapter_rank: int | None = None
    adapter_mib: int | None = None
    revision: str = ""
    golden: bool = False
    admin: AdminOptions | None = None
    speculation: SpeculativeConfig | None = None


def _adapters(opened: containers.Container, name: str, chosen: Sequence[str] = ()) -> AdapterIndex:
    """The adapters and use cases of a container that are served.

    Args:
        opened: The container.
        name: What the base is called.
        chosen: Adapters; none = all. Use cases go with the adapters that they are made of.

    Raises:
        BadInput: One of them has the base's name, or one that was chosen is not there.
    """
    index = opened.adapters()
    if chosen:
        for wanted in chosen:
            if wanted not in index.adapters:
                index.worn(wanted)  # names those that are there
                raise BadInput("is a use case, and adapters are chosen", where=f"adapter {wanted}")
        index = index.model_copy(
            update={
                "adapters": {key: index.adapters[key] for key in chosen},
                "use_cases": {
                    key: entry
                    for key, entry in index.use_cases.items()
                    if all(worn.name in chosen for worn in entry.adapters)
                },
            }
        )
    if name in {*index.adapters, *index.use_cases}:
        raise BadInput(
            f"an adapter of the container is called {name} too",
            where="--model-name",
            remedy="serve the base under another name",
        )
    return index


def _no_adapters(options: Options) -> None:
    """Refuse options that want some.

    Raises:
        BadInput: There is one.
    """
    for given, option in ((options.adapters, "--adapter"), (options.admin, "--admin-port")):
        if given:
            raise BadInput(
                "no pass holds an adapter with --max-adapter-rank 0",
                where=option,
                remedy="raise it, or leave it out",
            )


def serve(options: Options, *, say: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; running answers are finished first.

    Args:
        options: See there.
        say: Gets what a person wants to read.

    Returns:
        The exit code.

    Raises:
        BadInput: The container cannot be served with these options.
        OSError: The address is taken.
    """
    began = time.monotonic()
    listener = _bound(options.host, options.port)
    files = FileCache(options.cache / "files.sqlite")
    options.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = containers.load(options.container, digest_of=files.digest)
    if options.revision and opened.revision != options.revision:
        raise CorruptBlob(
            f"it is {opened.revision}, and {options.revision} is to be served",
            where=str(options.container),
        )
    if options.admin is not None:
        admin_listener = _admin_port(options, options.admin, opened)
    name = options.model_name or _name_of(opened)
    adapters = _adapters(opened, name, options.adapters)
    if options.adapter_rank == 0:
        _no_adapters(options)
        adapters = AdapterIndex()
    executor, held = open_with_adapters(
        opened,
        adapters,
        columns=options.adapter_rank,
        cache_mib=options.adapter_mib,
        coming=options.admin is not None,
        left=cache_budget(),
        open_executor=partial(
            opened.open_executor,
            cache=options.cache / "cpu",
            threads=options.threads,
            context_length=options.context_length,
            digest_of=files.digest,
        ),
    )
    if options.golden:
        _replay(opened, executor, adapters, held, say)
    if held is not None:
        held.lay_in_first()
    emulated = opened.manifest.target.backend is Backend.HTP
    # The static graphs of a twin round by their sizes; trying that takes minutes there.
    steadiness = Steadiness(chunks=False, neighbours=False) if emulated else try_out(executor)
    speculation = _speculation(options, opened, executor, steadiness, files)
    cache_bytes = _budget(options, executor, speculation, 0 if held is None else held.later)
    limits = ServingLimits(
        sequences=options.sequences,
        tokens=max(options.tokens, options.sequences),
        waiting=options.waiting,
        cache_bytes=cache_bytes,
        prefix_bytes=_kept(options, cache_bytes) if steadiness.all else 0,
    )
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
        prefix_cache=limits.prefix_bytes > 0,
        speculation=_about(options, speculation, steadiness),
        defaults=sampling_defaults(opened.folder),
    )
    vocab_size = executor.vocab_size
    engine = Engine(
        executor,
        limits,
        observer=metrics,
        speculation=speculation,
        adapters=None if held is None else held.cache,
        pinned=() if held is None else list(adapters.adapters),
    )
    metrics.load = lambda: engine.load
    metrics.guessed = lambda: engine.guessed
    metrics.gain = lambda: engine.gain
    metrics.adapters = lambda: _adapter_load(engine, held, model.adapters)
    grammars = Grammars(model.tokenizer, vocab_size, model.stop_tokens)
    service = Service(engine, model, limits, vocab_size, grammars, seconds=options.request_seconds)

    wanted = max(_CONNECTIONS, limits.sequences + limits.waiting + _MARGIN)
    connections = Connections(room_for(wanted, say=say))

    async def shut_down() -> None:
        await asyncio.to_thread(engine.close, seconds=options.drain_seconds)

    config = uvicorn.Config(
        application(
            service,
            metrics,
            api_keys=ApiKeys(options.api_keys, options.keys_folder),
            on_shutdown=shut_down,
            draining=lambda: server.draining,
            crowded=lambda: connections.crowded,
            local=is_loopback(listener.getsockname()[0]),
        ),
        http=connections.protocol,  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=math.ceil(connections.patience.idle),
        timeout_graceful_shutdown=max(1, int(options.drain_seconds)),
    )
    host, port = listener.getsockname()[:2]
    server = DrainingServer(config, delay=options.drain_delay_seconds)
    # uvicorn takes signals over while it runs and sends them again at its end: they must not end
    # this process before uvicorn is there, nor behind it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))

    async def run() -> None:
        beside: list[asyncio.Future[None]] = []
        if options.admin is not None:
            sources = AdapterSources(opened, options.admin.folder)
            changing = AdapterAdmin(engine, model.adapters, sources, name)
            await _lay_in(options.admin, changing, say)
            admin = AdminServer(admin_application(changing, options.admin.tokens))
            beside.append(asyncio.ensure_future(admin.run_on(admin_listener)))
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not (server.started or running.done()):  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.005)
        if not server.should_exit:
            say(
                f"{name} ({opened.revision[:19]}) on http://{host}:{port}, ready in "
                f"{time.monotonic() - began:.1f} s: {limits.sequences} answers at once, "
                f"{mebibytes(limits.cache_bytes)} MiB of cache, context {model.context_length}"
                f"{_told(held)}"
            )
            if emulated:
                say("it runs in the vendor's emulator, on this processor: slow, for trying out")
            elif not steadiness.all:
                say(
                    "here an answer's last bits depend on what is computed beside it, so nothing "
                    "is kept of one prompt for another"
                )
            if options.admin is not None:
                say(f"adapters come and go on port {admin_listener.getsockname()[1]}")
        await running
        if options.admin is not None:
            admin.should_exit = True
        await asyncio.gather(*beside)

    try:
        asyncio.run(run())
    finally:
        engine.close()
    say("ended")
    return 0


def _admin_port(options: Options, admin: AdminOptions, opened: Container) -> socket.socket:
    """The admin port's socket.

    Raises:
        BadInput: No adapter could come to this container.
        OSError: The address is taken.
    """
    none = opened.manifest.target.backend is Backend.HTP or not opened.adapters().adapters
    if none and admin.declared is None:
        raise BadInput(
            "no adapter can come to this container: its graphs have branches where its own "
            "adapters have them, and it carries none",
            where="--admin-port",
            remedy="serve a cpu container with an adapter, see `genai adapter add`",
        )
    return _bound(options.host, admin.port)


def _told(held: HeldAdapters | None) -> str:
    """What adapters take, as a person reads it; nothing where there are none."""
    if held is None:
        return ""
    taken = mebibytes(held.room.most_bytes)
    return f", {taken} MiB for adapters (a pass holds {held.room.columns} ranks)"


async def _lay_in(options: AdminOptions, admin: AdapterAdmin, say: Callable[[str], None]) -> None:
    """Serve the declared adapters before the first request comes.

    Raises:
        BadInput: The file is no declaration.
    """
    declared = read_declaration(options.declared) if options.declared is not None else None
    if declared is None:
        return
    for adapter in await declare(admin, declared):
        if "reason" in adapter:
            say(f"adapter {adapter['name']} is not served: {adapter['reason']}")


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


def _replay(
    opened: Container,
    executor: Executor,
    adapters: AdapterIndex,
    held: HeldAdapters | None,
    say: Callable[[str], None],
) -> None:
    def wear(names: Sequence[str]) -> bool:
        if not set(names) <= set(adapters.adapters):
            return False
        if held is not None:
            held.wear(names)
        return True

    found = replay_golden(opened, executor, wear)
    if found is None:
        say("it has no golden prompts: nothing was replayed")
        return
    near = f", {found.forgiven} of them within the tolerance" if found.forgiven else ""
    say(f"{found.compared} golden tokens are as recorded{near}")


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything is loaded; it listens when the server is ready.

    Raises:
        BadInput: No such address.
        OSError: It is taken, or not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadInput(f"no such address: {error}", where=f"host {host}") from error
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return made


def _name_of(opened: Container) -> str:
    """The build's name, as `genai build` lays containers out: `<output>/<build>/<target>`."""
    folder = opened.folder.resolve()
    return folder.parent.name if folder.name == opened.manifest.target.name else folder.name


def _kept(options: Options, cache_bytes: int) -> int:
    """Bytes in which beginnings of prompts are kept."""
    return cache_bytes if options.prefix_mib is None else min(options.prefix_mib << 20, cache_bytes)


def _speculation(
    options: Options,
    opened: Container,
    executor: Executor,
    steadiness: Steadiness,
    files: FileCache,
) -> Speculation | None:
    """What guesses tokens.

    Raises:
        BadInput: As `open_speculation`.
    """
    if options.speculation is None:
        return None

    def open_draft(draft: Container, threads: int | None) -> Executor:
        return draft.open_executor(
            cache=options.cache / "cpu",
            threads=options.threads if threads is None else threads,
            adapters=[],
            digest_of=files.digest,
        )

    return open_speculation(
        options.speculation,
        executor,
        steady=steadiness.chunks,
        tokenizer_of=opened,
        open_draft=open_draft,
        load_draft=lambda folder: containers.load(folder, digest_of=files.digest),
        where="--speculation",
    )


def _about(
    options: Options, speculation: Speculation | None, steadiness: Steadiness
) -> dict[str, Any] | None:
    """What /v1/models tells of it."""
    if options.speculation is None or speculation is None:
        return None
    return {
        "method": speculation.name,
        "num_speculative_tokens": speculation.most,
        "adaptive": options.speculation.adaptive,
        "lossy": not steadiness.chunks or speculation.typical is not None,
    }


def _budget(
    options: Options, executor: Executor, speculation: Speculation | None, later: int
) -> int:
    """Bytes of keys and values.

    Args:
        options: Of the server.
        executor: Its own.
        speculation: As well.
        later: Bytes that adapters may come to take.

    Raises:
        BadInput: They do not hold one sequence of the whole context.
    """
    whole = executor.cache_bytes(executor.context_length)
    if speculation is not None:
        whole += speculation.cache_bytes(executor.context_length)
    if options.cache_mib is None:
        budget = min(cache_budget() - later, options.sequences * whole)
        source = "what this machine's memory leaves, less 15 %"
        if later:
            source += f" and {mebibytes(later)} MiB for adapters that may come"
    else:
        budget, source = options.cache_mib << 20, "as asked for"
    if budget < whole:
        raise BadInput(
            f"one sequence of {executor.context_length} tokens takes {mebibytes(whole)} MiB of "
            f"keys and values, the cache has {mebibytes(max(budget, 0))} MiB ({source})",
            where="cache",
            remedy="give it more, or serve a shorter context length",
        )
    return budget

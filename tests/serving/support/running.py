"""A server in this process on an executor without a model, and a client for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn

from genai_core.container.adapters import AdapterEntry, AdapterIndex, UseCaseEntry, WornEntry
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.speculation.control import Speculation
from genai_runtime.steadiness import Steadiness
from genai_runtime.testing import ScriptedExecutor
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.adapters.served import ServedAdapters
from genai_serving.api.app import application
from genai_serving.api.model import ServedModel
from genai_serving.api.service import Service
from genai_serving.connections import Connections
from genai_serving.engine import Engine, ServingLimits
from genai_serving.metrics import Metrics
from genai_serving.structure.grammars import Grammars

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny-llama" / "model"
VOCAB, CONTEXT = 2048, 96
ENTRY = AdapterEntry(file="x", sha256="0" * 64, rank=1, linears=1)
INDEX = AdapterIndex(
    adapters={"c": ENTRY, "upper": ENTRY},
    use_cases={
        "both": UseCaseEntry(adapters=(WornEntry(name="c", alpha=0.5), WornEntry(name="upper")))
    },
)


def example_tokenizer() -> TextTokenizer:
    """Of the example's model, as the servers here have it."""
    tokenizer = TextTokenizer.of_folder(EXAMPLE)
    assert tokenizer is not None
    return tokenizer


@dataclass
class Answered:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """Of a stream; the last one is the word [DONE], or an error."""
        lines = [line for line in self.raw.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        told = [line.removeprefix("data: ") for line in lines]
        return [line if line == "[DONE]" else json.loads(line) for line in told]


@dataclass
class Client:
    """Speaks to a server of this machine."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answered:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self.connection()
        try:
            connection.request(method, path, raw, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return Answered(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answered:
        return self("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> Answered:
        return self("POST", path, body, headers)


class Paced(ScriptedExecutor):
    """A pass takes `seconds`."""

    seconds = 0.0

    def forward(self, rows: Any) -> Any:
        time.sleep(self.seconds)
        return super().forward(rows)


@dataclass
class Running:
    """A server in a thread of this process."""

    executor: Paced
    engine: Engine
    service: Service
    client: Client
    server: uvicorn.Server
    thread: threading.Thread

    def recite(self, tokens: Sequence[int]) -> None:
        """What every slot writes from now on; of a server of the kind `Reciting`."""
        assert isinstance(self.executor, Reciting)
        self.executor.script = tuple(tokens)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


class Reciting(Paced):
    """Every slot writes the same text, whatever it read, and then an end token."""

    script: tuple[int, ...] = ()

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.written: dict[int, int] = {}

    def forward(self, rows: Any) -> Any:
        outputs = super().forward(rows)
        for row, output in zip(rows, outputs, strict=True):
            if not len(output.logits):
                continue
            place = 0 if len(row.tokens) > 1 else self.written[row.slot]
            self.written[row.slot] = place + 1
            output.logits[-1, self.script[place] if place < len(self.script) else 2] = 99.0
        return outputs


def run_server(
    *,
    api_keys: Sequence[str] = (),
    limits: ServingLimits | None = None,
    tokenizer: bool = True,
    seconds: float = 0.0,
    template: str | None = None,
    kind: type[Paced] = Paced,
    context: int = CONTEXT,
    speculation: Speculation | None = None,
    connections: Connections | None = None,
    local: bool = False,
) -> Running:
    executor = kind(vocab_size=VOCAB, context_length=context, adapters=("c", "upper"))
    limits = limits or ServingLimits(sequences=4, tokens=32, waiting=32, cache_bytes=4 * CONTEXT)
    metrics = Metrics("scripted")
    engine = Engine(executor, limits, observer=metrics, speculation=speculation)
    metrics.load = lambda: engine.load
    metrics.guessed = lambda: engine.guessed
    config = json.loads((EXAMPLE / "tokenizer_config.json").read_text())
    template = template or (EXAMPLE / "chat_template.jinja").read_text()
    model = ServedModel(
        name="scripted",
        revision="sha256:00",
        context_length=context,
        tokenizer=example_tokenizer() if tokenizer else None,
        template=ChatTemplate(template, {"bos_token": config["bos_token"]}) if tokenizer else None,
        stop_tokens=frozenset({2, 6}),
        steadiness=Steadiness(chunks=True, neighbours=True),
        created=1,
        adapters=ServedAdapters(INDEX),
    )
    grammars = Grammars(model.tokenizer, VOCAB, model.stop_tokens)
    service = Service(engine, model, limits, VOCAB, grammars, seconds=seconds)

    async def shut_down() -> None:
        await asyncio.to_thread(engine.close, seconds=20)

    connections = Connections(1024) if connections is None else connections
    app = application(
        service,
        metrics,
        api_keys=api_keys,
        on_shutdown=shut_down,
        crowded=lambda: connections.crowded,
        local=local,
    )
    settings = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        lifespan="on",
        access_log=False,
        http=connections.protocol,  # type: ignore[arg-type]  # as the product does
        ws="none",
    )
    socket = settings.bind_socket()
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    client = Client(socket.getsockname()[1])
    return Running(executor, engine, service, client, server, thread)

"""Stores to test against: a directory, and real S3 servers with and without conditional writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Store
from genai_core.tasks.keys import task_key, toolchain_id
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed
from genai_core.testing import FaultProxy, S3Server, ServerFault, s3_server

_names = (f"store-{n}" for n in itertools.count())
_servers: list[str] = []
_CONDITIONS = frozenset({"if-none-match", "if-match"})

NewStore = Callable[[Path], Store]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in _servers:
        terminalreporter.write_line(f"S3 tests ran against {name}")
    if _servers and not any(name.startswith("versitygw") for name in _servers):
        terminalreporter.write_line(
            "NOT TESTED: a server that checks signatures (versitygw needs a Go toolchain)",
            yellow=True,
        )


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The best S3 server that this machine has."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        _servers.append(server.name)
        yield server


@pytest.fixture(scope="session")
def unconditional_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that ignores If-None-Match and If-Match, as older ones do.

    It is moto, which checks no signatures, behind a proxy that drops these headers.
    """
    with s3_server(tmp_path_factory.mktemp("moto"), prefer_moto=True) as server:
        proxy = FaultProxy(server.endpoint, rule=lambda *_: ServerFault(drop=_CONDITIONS))
        with proxy.running():
            yield S3Server("moto without conditions", proxy.endpoint, None)


@pytest.fixture(params=["directory", "s3", "s3-without-conditions"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Open one fresh store as often as called: several writers of one place."""
    name = next(_names)
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "store")
    fixture = "s3" if request.param == "s3" else "unconditional_endpoint"
    server: S3Server = request.getfixturevalue(fixture)
    return lambda: server.store(name)


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    """One fresh store."""
    return new_store()


@pytest.fixture
def fresh_name() -> str:
    """A prefix that no other test uses."""
    return next(_names)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Build records: `make_record({"part.bin": blob}, seed=1)`."""

    def make(
        files: dict[str, Blob] | None = None,
        *,
        seed: int = 0,
        operation: str = "convert",
        **fields: object,
    ) -> Record:
        toolchain = toolchain_id({"onnx-ir": "1"})
        config = {"seed": seed, "graph": {"ar": 32, "cl": 256}}
        key = task_key(operation, 1, toolchain_id=toolchain, config=config, inputs={})
        values: dict[str, object] = {
            "operation": operation,
            "key": key,
            "model": "tiny-llama",
            "source": "s3://models/tiny-llama",
            "config": config,
            "outputs": {
                path: Output(sha256=blob.sha256, size=blob.size)
                for path, blob in (files or {}).items()
            },
            "toolchain": ToolchainUsed(id=toolchain, versions={"onnx-ir": "1"}),
            "created_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        }
        return Record.model_validate(values | fields)

    return make

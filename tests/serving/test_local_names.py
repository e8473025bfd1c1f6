"""A server for this machine alone is asked by names of this machine (DNS rebinding)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import Running, run_server

from genai_serving.api.admin_port.local_names import is_loopback

STRANGE = "evil.example:8000"


@pytest.fixture(scope="module")
def local() -> Iterator[Running]:
    running = run_server(local=True)
    yield running
    running.stop()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "127.9.9.9", "[::1]:8000", "[::1]"],
)
def test_server_answers_when_its_name_is_one_of_this_machine(local: Running, host: str) -> None:
    assert local.client("GET", "/v1/models", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        STRANGE,
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "[::2]",
        "10.0.0.1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health"])
def test_server_refuses_another_name(local: Running, host: str, path: str) -> None:
    answered = local.client("GET", path, headers={"Host": host})
    assert answered.status == 403
    assert answered.json["error"]["code"] == "unknown_host"


def test_server_answers_any_name_when_a_key_is_asked_for() -> None:
    running = run_server(local=True, api_keys=("secret",))
    try:
        strange = {"Host": STRANGE}
        assert running.client("GET", "/v1/models", headers=strange).status == 401
        key = {"Authorization": "Bearer secret"}
        assert running.client("GET", "/v1/models", headers=strange | key).status == 200
    finally:
        running.stop()


def test_server_answers_any_name_when_it_listens_for_others(shared: Running) -> None:
    assert shared.client("GET", "/v1/models", headers={"Host": STRANGE}).status == 200


@pytest.mark.parametrize(
    ("name", "own"),
    [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("genai.svc", False)],
)
def test_is_loopback_tells_this_machine_from_others(name: str, own: bool) -> None:
    assert is_loopback(name) == own

"""The API's own document: valid, complete, and what schemathesis makes of it ends in no 500."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from running import Running, run_server
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = {"/v1/completions": 150, "/v1/chat/completions": 200, "/tokenize": 80, "/detokenize": 60}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = run_server()
    yield made
    made.stop()
    assert made.executor.open_slots == frozenset()


@pytest.fixture(scope="module")
def described(running: Running) -> dict[str, Any]:
    document: dict[str, Any] = running.client.get("/openapi.json").json
    return document


def test_the_document_is_valid_and_names_every_route(
    running: Running, described: dict[str, Any]
) -> None:
    openapi_spec_validator.validate(described)
    for path in described["paths"]:
        told = running.client.get(path.replace("{model}", "scripted"))
        assert told.status in {200, 405}, path
    body = described["components"]["schemas"]["ChatBody"]
    assert body["additionalProperties"] is False
    assert {"messages", "tools", "response_format", "structured_outputs"} <= set(body["properties"])
    assert body["required"] == ["messages"]
    asked = described["components"]["schemas"]["StructuredOutputs"]["properties"]
    assert set(asked) == {"json", "regex", "choice", "json_object"}, "as requests spell them"


def attack(running: Running, described: dict[str, Any], path: str, count: int) -> Counter[int]:
    """Requests as the document allows them, and others; how they ended."""
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://127.0.0.1:{running.client.port}")
    ended: Counter[int] = Counter()
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    (operation,) = [each for each in operations if each.path == path]

    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call(timeout=60)
        ended[response.status_code] += 1
        assert response.status_code < 500, (case.body, response.text)
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as failed:
            raise AssertionError([(str(f), case.body) for f in failed.exceptions]) from failed

    from hypothesis import given

    modes = schemathesis.GenerationMode
    for mode, share in ((modes.POSITIVE, count * 2 // 3), (modes.NEGATIVE, count // 3)):
        settings(
            max_examples=share,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )(given(case=operation.as_strategy(generation_mode=mode))(check))()
    return ended


@pytest.mark.parametrize("path", EXAMPLES)
def test_no_generated_request_ends_in_a_500_or_without_an_answer(
    running: Running, described: dict[str, Any], path: str
) -> None:
    ended = attack(running, described, path, EXAMPLES[path])
    assert ended.keys() <= {200, 400, 404, 405}
    assert ended[400] > 10
    assert running.client.get("/health").status == 200


@pytest.mark.long
@pytest.mark.parametrize("path", EXAMPLES)
def test_no_generated_request_ends_in_a_500_over_many(
    running: Running, described: dict[str, Any], path: str
) -> None:
    print(path, attack(running, described, path, 2500))
    assert running.client.get("/health").status == 200

"""What `genai inspect` makes of a report, for which no manifest vouches."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_core.errors import BadInput
from genai_runtime.container.inspection import _report


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            b'{"verified": "Cpu", "linears": {"int8": 3}}',
            {"verified": "Cpu", "linears": {"int8": 3}},
        ),
        (b'{"verified": 3, "fidelity": [], "warnings": ["a", 1], "new": 1}', {"warnings": ["a"]}),
        (b"[1]", {}),
    ],
)
def test_report_shows_members_that_are_of_their_type(
    tmp_path: Path, text: bytes, shown: dict[str, object]
) -> None:
    (tmp_path / "report.json").write_bytes(text)
    assert _report(tmp_path / "report.json") == shown


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000])
def test_report_is_named_when_it_is_no_json(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    with pytest.raises(BadInput, match="it is no report") as caught:
        _report(path)
    assert caught.value.where == str(path)

"""Reasons of conditions stand in `genai_core.reasons`, or are the code of an error."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import genai_operator
from genai_core import errors
from genai_core.reasons import Reason

ROOM = Path(genai_operator.__file__).parent
_GIVE_A_REASON = {
    *(
        "Waiting",
        "Stalled",
        "Wait",
        "Stall",
        "Done",
        "Hold",
        "Standing",
        "DeploymentStanding",
        "Outcome",
    ),
    *("condition", "post_event"),
}
_OF_EVENTS = {"TaskRetried", "UnknownArchitecture"}


def given() -> dict[str, list[str]]:
    """Reasons that the operator's code spells as text, with where."""
    found: dict[str, list[str]] = {}
    for path in sorted(ROOM.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [k.value for k in node.keywords if k.arg == "reason"]
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for value in (*node.args, *named) if name in _GIVE_A_REASON else named:
                word = value.value if isinstance(value, ast.Constant) else None
                if isinstance(word, str) and re.fullmatch(r"([A-Z][a-z]+){2,}", word):
                    found.setdefault(word, []).append(f"{path.name}:{node.lineno}")
    return found


def test_operator_spells_no_reason_of_its_own() -> None:
    known = {
        "ToolchainOutdated",
        "ServerOutdated",
        "ArtifactAvailable",
    } | _OF_EVENTS  # types, and Events
    assert {word: where for word, where in given().items() if word not in known} == {}


def test_reasons_are_words_with_a_meaning_and_one_alone_is_an_errors_code_too() -> None:
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GenAIError)
    }
    for reason in Reason:
        assert re.fullmatch(r"([A-Z][a-z]+)+", reason), reason
        assert reason.means
        assert set(reason.of.split(", ")) <= {"build", "store", "target", "deployment"}
    assert {reason for reason in Reason if reason in codes} == {Reason.STORE_NOT_READY}, "the same"

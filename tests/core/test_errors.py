from __future__ import annotations

import pickle

import pytest

from genai_core import errors
from genai_core.errors import BadInput, BadModel, GenAIError, UnsupportedOperator


def tree(kind: type[GenAIError]) -> list[type[GenAIError]]:
    """The published errors; other rooms may refine one inside their own process."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(found for child in children for found in tree(child))]


def test_an_error_is_one_line() -> None:
    error = BadModel("no\nsuch node", where="model.onnx", remedy="export it again")
    assert str(error) == "model.onnx: no such node; export it again"


@pytest.mark.parametrize("kind", tree(GenAIError))
def test_every_error_survives_a_process_boundary(kind: type[GenAIError]) -> None:
    error = kind("what", where="here", remedy="do this")
    for again in (pickle.loads(pickle.dumps(error)), errors.from_dict(error.as_dict())):
        assert type(again) is kind
        assert again.as_dict() == error.as_dict()


def test_codes_are_unique_and_bad_input_has_its_own_exit_code() -> None:
    codes = [kind.code for kind in tree(GenAIError)]
    assert len(set(codes)) == len(codes)
    assert {kind.exit_code for kind in tree(BadInput)} == {2}
    assert issubclass(UnsupportedOperator, BadModel)

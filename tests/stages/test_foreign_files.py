"""What ingest makes of the small files beside a model that others wrote."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from genai_core.errors import BadModel
from genai_core.operations import IngestConfig
from genai_runtime.generate import stop_tokens
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.aimet.read import read_encodings
from genai_stages.operations import ingest
from genai_stages.stage import Context, StageResult
from genai_stages.testing_sources import write_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"


def ingested(folder: Path) -> StageResult:
    out = folder.parent / "out"
    out.mkdir()
    context = Context(scratch=folder.parent / "scratch")
    return ingest.run({"source": folder}, IngestConfig(), out, context)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([2, 99999], "99999 is no token of the model, which knows 64"),
        (-1, "-1 is no token"),
        (64, "64 is no token"),
        ("2", "is neither a token id nor a list"),
        (True, "is neither a token id nor a list"),
        ([2, 2.0], "is neither a token id nor a list"),
    ],
)
def test_ingest_refuses_end_tokens_when_the_model_has_none_such(
    tmp_path: Path, file: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source")
    path = tmp_path / "source" / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | {"eos_token_id": value}))

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work on a large model")

    monkeypatch.setattr(ingest, "source_to_core", too_late)
    with pytest.raises(BadModel, match=message) as caught:
        ingested(tmp_path / "source")
    assert caught.value.where == f"{file}: eos_token_id"


def test_ingest_takes_end_tokens_when_the_model_knows_them(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    path = tmp_path / "source" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0, 63]}))
    ingested(tmp_path / "source")
    assert stop_tokens(tmp_path / "out" / "assets") == {0, 63}


def test_ingest_reads_texts_when_they_are_marked_and_hands_them_on_without(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source, vocab=2048)
    for name, form in (("config.json", "utf-16"), ("tokenizer.json", "utf-8-sig")):
        origin = EXAMPLE / name if name == "tokenizer.json" else source / name
        (source / name).write_bytes(origin.read_text(encoding="utf-8").encode(form))
    (source / "generation_config.json").write_bytes(codecs.BOM_UTF8 + b'{"eos_token_id": 5}')
    entry = {"name": "logits", "output_dtype": "uint16", "y_scale": 0.1, "y_zero_point": 9}
    text = json.dumps({"version": "2.0.0", "encodings": [entry]})
    (source / "model.encodings").write_bytes(text.encode("utf-16"))
    result = ingested(source)
    assert result.notes["encodings"] == 1
    assets = tmp_path / "out" / "assets"
    assert json.loads((assets / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 2048
    assert (assets / "tokenizer.json").read_bytes() == (EXAMPLE / "tokenizer.json").read_bytes()
    assert stop_tokens(assets) == {5}
    ids = TextTokenizer(source / "tokenizer.json").encode("def f(x):")
    assert ids.tolist() == TextTokenizer(assets / "tokenizer.json").encode("def f(x):").tolist()
    copied = next((tmp_path / "out" / "encodings").iterdir())
    assert list(read_encodings(copied)) == ["logits"]


@pytest.mark.parametrize(
    "kept",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst"}},
        {"padding": {"strategy": {"Fixed": 32}, "direction": "Left", "pad_id": 0}},
    ],
)
def test_tokenizer_reads_the_whole_text_when_its_file_keeps_the_limits_of_a_training(
    tmp_path: Path, kept: dict[str, dict[str, object]]
) -> None:
    content = json.loads((EXAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    given: dict[str, dict[str, object]] = {
        "truncation": {"stride": 0},
        "padding": {"pad_type_id": 0, "pad_token": "<pad>"},
    }
    for name, fields in kept.items():
        content[name] = {"pad_to_multiple_of": None, **given[name], **fields}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    text = "def f(x):\n    return x + 1\n"
    expected = TextTokenizer(EXAMPLE / "tokenizer.json").encode(text)
    assert TextTokenizer(path).encode(text).tolist() == expected.tolist()


def test_tokenizer_ends_in_a_sentence_when_its_rule_backtracks_without_end(tmp_path: Path) -> None:
    content = json.loads((EXAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    content["pre_tokenizer"] = {**split, "invert": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = TextTokenizer(path)
    with pytest.raises(BadModel, match="cannot cut the text into tokens") as caught:
        tokenizer.encode("a" * 60 + "!")
    assert caught.value.where == "tokenizer.json"


def test_merges_that_lack_their_prefix_are_refused_when_a_tokenizer_is_read(tmp_path: Path) -> None:
    """The tokenizers library ends the whole process where it cuts a letter in two."""
    content = json.loads((EXAMPLE / "tokenizer.json").read_text())
    content["model"] |= {"continuing_subword_prefix": "x"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadModel, match=r"model\.merges\[0\]: its second token does not begin"):
        TextTokenizer(path)


def test_merges_with_their_prefix_are_read(tmp_path: Path) -> None:
    content = json.loads((EXAMPLE / "tokenizer.json").read_text())
    vocab = {"a": 0, "xb": 1, "ab": 2}
    content["model"] |= {"continuing_subword_prefix": "x", "vocab": vocab, "merges": [["a", "xb"]]}
    content |= {"added_tokens": [], "pre_tokenizer": None, "post_processor": None}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert TextTokenizer(path).encode("ab").tolist() == [2]

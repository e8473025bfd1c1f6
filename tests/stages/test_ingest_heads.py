"""EAGLE heads as core graphs, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import heads
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from genai_core.errors import BadModel
from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import read_core
from genai_stages.operations import ingest
from genai_stages.stage import Context, StageResult

HEAD = IngestConfig(head=True)
Run = Callable[[Path], tuple[StageResult, Path]]
"""A source's folder -> what its ingestion says, and the core graph's folder."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    out = tmp_path / "out"
    out.mkdir()

    def ingested(folder: Path) -> tuple[StageResult, Path]:
        context = Context(scratch=tmp_path / "scratch", threads=1)
        return ingest.run({"source": folder}, HEAD, out, context), out

    return ingested


@pytest.mark.parametrize(
    ("version", "inputs", "features", "logits"),
    [(1, ["hidden_states"], 192, 2048), (3, ["features", "hidden_states"], 576, 1024)],
)
def test_a_head_becomes_a_core_graph_that_computes_the_same(
    run: Run,
    tmp_path: Path,
    version: int,
    inputs: list[str],
    features: int,
    logits: int,
) -> None:
    result, out = run(heads.source(tmp_path / "source", version))
    model, facts = read_core(out)
    assert [value.name for value in model.graph.inputs] == ["input_ids", *inputs]
    assert [value.name for value in model.graph.outputs] == ["logits", "hidden"]
    assert facts.head is not None
    assert (facts.head.features, facts.head.features_size) == (inputs[0], features)
    assert (facts.head.hidden, facts.head.feedback) == ("hidden_states", "hidden")
    assert (facts.head.tokens, facts.vocab_size) == (2048, logits)
    assert result.notes["drift"] < 1e-5
    assert set(facts.groups) == {"embed", "layer_000", "head"}
    assert (out / "token_map.json").is_file() == (version == 3)


def test_d2t_of_a_public_head_counts_from_the_draft_s_own_id(run: Run, tmp_path: Path) -> None:
    folder = heads.source(tmp_path / "source", 3)
    ids = json.loads((folder / "draft_token_map.json").read_text())
    (folder / "draft_token_map.json").unlink()
    offsets = np.asarray(ids) - np.arange(len(ids))
    save_file({"d2t": offsets}, folder / "draft_token_map.safetensors")
    _, out = run(folder)
    assert json.loads((out / "token_map.json").read_text()) == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "logits have 1024 ids, its embedding table 2048, and there is no map"),
        ("[1, 2", "it is not JSON"),
        ('{"0": 1, "2": 3}', "its keys are not the draft's ids from 0 on"),
        ('[1, "2"]', "it is no array of token ids"),
        ([*range(1023)], "it has 1023 entries, the head's logits have 1024 ids"),
        ([*range(1023), 2048], "draft id 1023 stands for 2048, outside the model's 2048 tokens"),
        ([*range(1023), -1], "draft id 1023 stands for -1, outside"),
        ([*range(1023), 5], "draft ids 5 and 1023 both stand for token 5"),
    ],
)
def test_a_token_map_that_is_none_of_the_head_s_is_refused(
    run: Run, tmp_path: Path, content: list[int] | str | None, message: str
) -> None:
    folder = heads.source(tmp_path / "source", 3)
    path = folder / "draft_token_map.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadModel, match=message) as raised:
        run(folder)
    assert raised.value.where == "spec.speculation[0].draftTokenMap"
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no feedback", "has 0 outputs \\[1, T, width\\] beside the logits"),
        ("no states", "reads hidden states in one input or two, .* this one has none"),
        ("two feedbacks", "has 2 outputs \\[1, T, width\\] beside the logits"),
    ],
)
def test_a_graph_that_is_no_head_is_refused(
    run: Run, tmp_path: Path, change: str, message: str
) -> None:
    folder = heads.source(tmp_path / "source", 1)
    model = onnx.load(folder / "model.onnx")  # noqa: TID251 - a small one
    graph = model.graph
    if change == "no feedback":
        del graph.output[[value.name for value in graph.output].index("hidden")]
    elif change == "two feedbacks":
        shape: list[str | int | None] = [1, "sequence_length", 192]
        graph.output.append(
            helper.make_tensor_value_info("/Add_5_output_0", TensorProto.FLOAT, shape)
        )
    else:
        del graph.input[[value.name for value in graph.input].index("hidden_states")]
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == "hidden_states":
                    node.input[place] = "/embed_tokens/Gather_output_0"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(BadModel, match=message):
        run(folder)


def test_a_head_is_not_taken_for_a_language_model(tmp_path: Path) -> None:
    folder = heads.source(tmp_path / "source", 1)
    (tmp_path / "out").mkdir()
    context = Context(scratch=tmp_path / "scratch", threads=1)
    with pytest.raises(BadModel, match="no decoder-only language model has an input hidden_states"):
        ingest.run({"source": folder}, IngestConfig(), tmp_path / "out", context)

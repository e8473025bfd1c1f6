"""A chain of parts is the whole graph bit for bit, and each part holds what it needs alone."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from genai_core.errors import InvalidSpec, UnsupportedOperator
from genai_core.operations import GraphConfig, SplitConfig, TransformConfig
from genai_stages.graph.core_graph import DOMAIN, read_core, write_proto
from genai_stages.graph.provenance import read_provenance, write_provenance
from genai_stages.operations import transform
from genai_stages.stage import Context
from genai_stages.static.split import ModelPart, boundary_name, cut
from genai_stages.static.static_graph import emit_static
from genai_stages.testing import random_core_model

LAYERS = 4
PLANS = {
    "one": [(0, 4, True, True)],
    "three": [(0, 1, True, False), (1, 3, False, False), (3, 4, False, True)],
    "apart": [(0, 0, True, False), (0, 2, False, False), (2, 4, False, False), (4, 4, False, True)],
    "four": [(0, 1, True, False), (1, 2, False, False), (2, 3, False, False), (3, 4, False, True)],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the planner fills it: the static graph beside facts and weights."""
    folder = tmp_path_factory.mktemp("whole")
    facts = random_core_model(
        folder, layers=LAYERS, windows=(4, 0, 0, 0), tied=True, embedding_scale=True, qk_norm=True
    )
    core, _ = read_core(folder)
    static = emit_static(core, facts, ar=8, cl=64)
    write_proto(static.model, folder / "ar8_cl64.onnx")
    write_provenance(folder, static.provenance)
    return folder


def parts(whole: Path, out: Path, plan: str, *, mha2sha: bool = False) -> list[Path]:
    """Run the operation for each part, each in a folder that has this part's weights alone."""
    made = []
    for index, (first, last, embedding, lm_head) in enumerate(PLANS[plan], 1):
        folder = out / f"in_{index}"
        (folder / "weights").mkdir(parents=True)
        for name in ("ar8_cl64.onnx", "provenance.json", "facts.json"):
            shutil.copy(whole / name, folder)
        groups = [f"layer_{layer:03d}" for layer in range(first, last)]
        groups += ["embed"] * (embedding or lm_head) + ["head"] * lm_head
        for group in groups:
            shutil.copy(whole / f"weights/{group}.data", folder / "weights")
        split = SplitConfig(
            index=index,
            count=len(PLANS[plan]),
            first=first,
            last=last,
            embedding=embedding,
            lm_head=lm_head,
        )
        config = TransformConfig(graph=GraphConfig(ar=8, cl=64), split=split, mha2sha=mha2sha)
        folder_out = out / f"out_{index}"
        folder_out.mkdir()
        transform.run({"model": folder}, config, folder_out, Context(scratch=out))
        name = f"ar8_cl64_{index}_of_{len(PLANS[plan])}.onnx"
        assert sorted(p.name for p in folder_out.iterdir()) == [name, "provenance.json"]
        made.append(folder / name)
        shutil.copy(folder_out / name, made[-1])
        shutil.copy(folder_out / "provenance.json", folder / "provenance.json")
    return made


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def random_feeds(path: Path) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    feeds: dict[str, np.ndarray] = {}
    for value in ir.load(path).graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        shape = value.shape.numpy()
        feeds[value.name] = (
            random.integers(0, 512, shape).astype(np.int32)
            if value.name == "input_ids"
            else random.standard_normal(shape).astype(np.float32)
        )
    return feeds


@pytest.mark.parametrize("plan", PLANS)
def test_chain_of_parts_is_bit_equal_to_the_whole(whole: Path, tmp_path: Path, plan: str) -> None:
    feeds = random_feeds(whole / "ar8_cl64.onnx")
    expected = run(whole / "ar8_cl64.onnx", feeds)
    made = parts(whole, tmp_path, plan)
    found: dict[str, np.ndarray] = {}
    for path in made:
        found |= run(path, feeds | found)
    assert {name for name in found if not name.startswith("hidden_states_")} == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    graphs = [ir.load(path).graph for path in made]
    assert [g.name for g in graphs] == [
        f"ar8_cl64_{k}_of_{len(made)}" for k in range(1, len(made) + 1)
    ]


def test_chain_of_parts_with_split_heads_is_bit_equal_to_one_part(
    whole: Path, tmp_path: Path
) -> None:
    feeds = random_feeds(whole / "ar8_cl64.onnx")
    (single,) = parts(whole, tmp_path / "one", "one", mha2sha=True)
    expected = run(single, feeds)
    found: dict[str, np.ndarray] = {}
    for path in parts(whole, tmp_path / "three", "three", mha2sha=True):
        found |= run(path, feeds | found)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("mha2sha", [False, True])
def test_each_initializer_lies_in_one_part(whole: Path, tmp_path: Path, mha2sha: bool) -> None:
    graphs = [ir.load(path).graph for path in parts(whole, tmp_path, "three", mha2sha=mha2sha)]
    counts = Counter(itertools.chain.from_iterable(graph.initializers for graph in graphs))
    assert set(counts.values()) == {1}
    if not mha2sha:
        everything = ir.load(whole / "ar8_cl64.onnx").graph.initializers
        assert set(everything) <= set(counts)
        assert set(counts) - set(everything) == {
            "hidden_states_1.rows.shape", "hidden_states_1.out.shape",
            "hidden_states_3.rows.shape", "hidden_states_3.out.shape",
        }  # fmt: skip


def test_inputs_go_where_they_are_used(whole: Path, tmp_path: Path) -> None:
    graphs = [ir.load(path).graph for path in parts(whole, tmp_path, "apart")]
    names = [[value.name for value in graph.inputs] for graph in graphs]
    rotary = ["position_ids_cos", "position_ids_sin"]
    caches = [[f"past_{kind}_{layer}_in" for kind in ("key", "value")] for layer in range(LAYERS)]
    masks = ["attention_mask", "attention_mask_w4"]
    assert names == [
        ["input_ids"],
        ["hidden_states_0", *masks, *rotary, *caches[0], *caches[1]],
        ["hidden_states_2", masks[0], *rotary, *caches[2], *caches[3]],
        ["hidden_states_4"],
    ]
    boundary = graphs[1].inputs[0]
    assert boundary.shape is not None
    assert tuple(boundary.shape.numpy()) == (1, 8, 64)
    assert graphs[0].outputs[0].name == boundary_name(0)


def test_boundary_stands_for_the_sources_tensor(whole: Path, tmp_path: Path) -> None:
    made = parts(whole, tmp_path, "three")
    entering = read_provenance(made[1].parent)["hidden_states_1"]
    leaving = read_provenance(made[0].parent)["hidden_states_1"]
    assert entering == leaving
    assert entering.source == "/model/layers.0/Add_1_output_0"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            ModelPart(0, 5, embedding=True, lm_head=True),
            "0 to 5 are no part of a model with 4 layers",
        ),
        (ModelPart(1, 2, embedding=True, lm_head=False), "1 to 2 are no part"),
        (ModelPart(1, 2, embedding=False, lm_head=True), "1 to 2 are no part"),
        (ModelPart(3, 2, embedding=False, lm_head=False), "3 to 2 are no part"),
        (ModelPart(2, 2, embedding=False, lm_head=False), "use at most 4 parts"),
    ],
)
def test_part_that_does_not_exist_is_refused(whole: Path, part: ModelPart, message: str) -> None:
    core, facts = read_core(whole)
    static = emit_static(core, facts, ar=8, cl=64)
    with pytest.raises(InvalidSpec, match=message):
        cut(static, facts, part, name="x")


def test_second_tensor_between_layers_is_refused(tmp_path: Path) -> None:
    facts = random_core_model(tmp_path, layers=2)
    core, _ = read_core(tmp_path)
    values = {value.name: value for node in core.graph for value in node.outputs}
    last = next(n for n in core.graph if n.outputs[0].name == facts.boundaries[2])
    assert last.domain != DOMAIN
    # The residual stream of layer 1 leaps over its boundary, back to the embedding.
    last.replace_input_with(0, values[facts.boundaries[0]])
    static = emit_static(core, facts, ar=8, cl=64)
    cut(static, facts, ModelPart(0, 2, embedding=True, lm_head=True), name="x")
    with pytest.raises(UnsupportedOperator, match="also read 'input_ids'"):
        cut(static, facts, ModelPart(1, 2, embedding=False, lm_head=True), name="x")


def test_cut_leaves_the_whole_graph_as_it_was(whole: Path) -> None:
    core, facts = read_core(whole)
    static = emit_static(core, facts, ar=8, cl=64)
    before = ir.to_proto(static.model).SerializeToString(deterministic=True)
    cut(static, facts, ModelPart(1, 3, embedding=False, lm_head=False), name="x")
    assert ir.to_proto(static.model).SerializeToString(deterministic=True) == before

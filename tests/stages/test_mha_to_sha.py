"""Attention head by head computes the same, with views of the same weights and known origins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from genai_core.errors import DriftError
from genai_core.facts import ModelFacts, TensorSource
from genai_core.operations import GraphConfig, SplitConfig, TransformConfig
from genai_stages.graph.core_graph import read_core, write_proto
from genai_stages.graph.provenance import write_provenance
from genai_stages.operations import transform
from genai_stages.stage import Context
from genai_stages.static.compare_heads import compare_heads
from genai_stages.static.head_axes import part_shape, plain, reshaped
from genai_stages.static.mha_to_sha import mha_to_sha
from genai_stages.static.split import ModelPart
from genai_stages.static.static_graph import StaticGraph, emit_static
from genai_stages.testing import random_core_model

VARIANTS: dict[str, dict[str, Any]] = {
    "six-over-two": {"heads": 6, "kv_heads": 2},
    "gemma": {
        "qk_norm": True,
        "post_norms": True,
        "softcap": 5.0,
        "final_softcap": 3.0,
        "windows": (4, 0),
        "local_theta": 100.0,
    },
    "partial-bias": {"rotary_dim": 8, "qkv_bias": True},
    "interleaved": {"interleaved": True, "heads": 6, "kv_heads": 3, "rotary_dim": 12},
    "one-for-each": {"rotary_dim": 0, "kv_heads": 4},
    "one-for-all": {"kv_heads": 1},
}


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    assert value.shape is not None
    return tuple(value.shape.numpy())


def names_of(values: Iterable[ir.Value]) -> list[str]:
    return [value.name or "" for value in values]


def both(
    folder: Path, *, ar: int = 8, cl: int = 64, **shape: object
) -> tuple[ModelFacts, StaticGraph, StaticGraph]:
    facts = random_core_model(folder, **shape)
    core, _ = read_core(folder)
    before = emit_static(core, facts, ar=ar, cl=cl)
    return facts, before, mha_to_sha(before, facts)


def run(model: ir.Model, folder: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    path = folder / "run.onnx"
    write_proto(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def random_feeds(model: ir.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        shape = shape_of(value)
        feeds[value.name or ""] = (
            random.integers(0, 512, shape).astype(np.int32)
            if value.name == "input_ids"
            else random.standard_normal(shape).astype(np.float32)
        )
    return feeds


def interface(model: ir.Model) -> list[tuple[str, tuple[int, ...]]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name or "", shape_of(value)) for value in values]


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_heads_compute_the_same_and_keep_the_interface(tmp_path: Path, variant: str) -> None:
    _, before, after = both(tmp_path, **VARIANTS[variant])
    assert interface(before.model) == interface(after.model)
    feeds = random_feeds(before.model)
    expected = run(before.model, tmp_path, feeds)
    found = run(after.model, tmp_path, feeds)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_attention_matmul_has_several_heads_left(tmp_path: Path, variant: str) -> None:
    facts, before, after = both(tmp_path, **VARIANTS[variant])
    heads = sum(attention.num_heads for attention in facts.attention)
    several = [n for n in before.model.graph if n.op_type == "MatMul"]
    assert all(math.prod(shape_of(n.outputs[0])[:-2]) > 1 for n in several)
    matmuls = [node for node in after.model.graph if node.op_type == "MatMul"]
    assert len(matmuls) == 2 * heads
    for node in matmuls:
        assert all(math.prod(shape_of(v)[:-2]) == 1 for v in (*node.inputs, *node.outputs))


def test_every_head_has_its_own_linear_over_its_rows(tmp_path: Path) -> None:
    _, before, after = both(tmp_path, heads=6, kv_heads=2, qkv_bias=True)
    for letter, heads in (("q", 6), ("k", 2), ("v", 2)):
        for kind in ("weight", "bias"):
            name = f"model.layers.1.self_attn.{letter}_proj.{kind}"
            whole = before.model.graph.initializers[name].const_value
            assert isinstance(whole, ir.ExternalTensor)
            assert name not in after.model.graph.initializers
            for head in range(heads):
                part = after.model.graph.initializers[f"{name}.head_{head}"].const_value
                assert isinstance(part, ir.ExternalTensor)
                assert part.location == whole.location
                rows = slice(16 * head, 16 * (head + 1))
                np.testing.assert_array_equal(part.numpy(), whole.numpy()[rows])
                origin = TensorSource(source=name, head=head, rows=(rows.start, rows.stop))
                assert after.provenance[f"{name}.head_{head}"] == origin


def test_every_tensor_of_a_head_inherits_from_its_whole(tmp_path: Path) -> None:
    _, before, after = both(tmp_path, **VARIANTS["gemma"])
    old = {name for node in before.model.graph for name in names_of(node.outputs)}
    old |= {*names_of(before.model.graph.inputs), *before.model.graph.initializers}
    new = {name for node in after.model.graph for name in names_of(node.outputs)}
    new |= set(after.model.graph.initializers)
    heads = 0
    for name in sorted(new - old):
        if ".ints_" in name:
            continue
        whole, _, head = name.rpartition(".head_")
        parent = before.provenance.get(whole, TensorSource(source=whole))
        assert whole in old
        assert (after.provenance[name].source, after.provenance[name].head) == (
            parent.source,
            int(head),
        )
        heads += 1
    assert heads > 100
    for name in new & old:
        assert after.provenance.get(name) == before.provenance.get(name), name


def test_rows_of_a_fused_projection_count_from_the_sources_first(tmp_path: Path) -> None:
    facts, before, _ = both(tmp_path, heads=6, kv_heads=2)
    name = "model.layers.0.self_attn.k_proj.weight"
    fused = TensorSource(source="qkv.weight", rows=(96, 128))
    after = mha_to_sha(StaticGraph(before.model, {**before.provenance, name: fused}), facts)
    assert after.provenance[f"{name}.head_1"] == TensorSource(
        source="qkv.weight", head=1, rows=(112, 128)
    )


def test_graphs_of_all_ars_have_the_same_tensors(tmp_path: Path) -> None:
    names = []
    for ar in (1, 8, 32):
        _, _, after = both(tmp_path / str(ar), ar=ar, cl=128, **VARIANTS["interleaved"])
        names.append([name for node in after.model.graph for name in names_of(node.outputs)])
        names.append(sorted(after.provenance))
    assert names[0] == names[2] == names[4]
    assert names[1] == names[3] == names[5]


def test_heads_need_no_transposes_but_that_of_the_keys(tmp_path: Path) -> None:
    _, _, after = both(tmp_path, heads=6, kv_heads=2)
    moved = [node for node in after.model.graph if node.op_type == "Transpose"]
    assert [node.outputs[0].name for node in moved] == [
        f"past_key_{layer}_out.head_{head}" for layer in (0, 1) for head in (0, 1)
    ]


def test_operation_keeps_heads_together_when_told(tmp_path: Path) -> None:
    facts, before, _ = both(tmp_path)
    write_proto(before.model, tmp_path / "ar8_cl64.onnx")
    write_provenance(tmp_path, before.provenance)
    split = SplitConfig(index=1, count=1, first=0, last=2, embedding=True, lm_head=True)
    graph = GraphConfig(ar=8, cl=64)
    counts = {}
    for mha2sha in (True, False):
        out = tmp_path / str(mha2sha)
        out.mkdir()
        config = TransformConfig(graph=graph, split=split, mha2sha=mha2sha)
        result = transform.run({"model": tmp_path}, config, out, Context(scratch=out))
        counts[mha2sha] = result.facts["multiHeadMatMuls"]
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        transform.run({"model": tmp_path}, config, out, Context(scratch=out))
        assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert counts == {True: 0, False: 2 * facts.layers}


def test_swapped_kv_heads_are_found_as_drift(tmp_path: Path) -> None:
    facts, before, after = both(tmp_path, heads=6, kv_heads=2)
    part = ModelPart(0, 2, embedding=True, lm_head=True)
    assert compare_heads(before, after, facts, part=part, weights=tmp_path) < 1e-5
    values = {value.name: value for node in after.model.graph for value in node.outputs}
    scores = values["/model/layers.1/self_attn/scores.head_0"].producer()
    assert scores is not None
    scores.replace_input_with(1, values["/model/layers.1/self_attn/key_all.head_1"])
    with pytest.raises(DriftError, match="ar8_cl64, from layer 1 on"):
        compare_heads(before, after, facts, part=part, weights=tmp_path)


@given(data=st.data())
def test_reshaped_layout_cuts_out_the_same_numbers(data: st.DataObject) -> None:
    """Cutting a head out of a reshaped array = reshaping the head that was cut out before."""
    sizes = {"a": data.draw(st.sampled_from([2, 3])), "b": data.draw(st.sampled_from([2, 4]))}
    axes: list[tuple[str, ...]] = [(), ("a",), ("b",)]
    labels = data.draw(st.permutations(axes))
    if data.draw(st.booleans()):
        labels = [(), ("a", "b"), ()]
    inner = [data.draw(st.sampled_from([1, 2, 6])) for _ in labels]
    shape = tuple(
        math.prod(sizes[name] for name in axis) * extra
        for axis, extra in zip(labels, inner, strict=True)
    )
    factors: list[int] = []
    for axis, extra in zip(labels, inner, strict=True):
        factors += [sizes[name] for name in axis] + [extra]
    target: list[int] = []
    for factor in factors:
        joined: bool = bool(target) and data.draw(st.booleans())
        if joined:
            target[-1] *= factor
        else:
            target.append(factor)
    layout = tuple(labels)
    found = reshaped(shape, layout, tuple(target), sizes=sizes)
    if found is None:
        return
    assert sorted(name for axis in found for name in axis) == sorted(
        name for axis in layout for name in axis
    )
    array = np.arange(math.prod(shape)).reshape(shape)
    for a in range(sizes["a"]):
        for b in range(sizes["b"]):
            digits = {"a": a, "b": b}
            here = cut_out(array, layout, sizes, digits=digits)
            there = cut_out(array.reshape(target), found, sizes, digits=digits)
            np.testing.assert_array_equal(here.reshape(there.shape), there)
            assert there.shape == part_shape(tuple(target), found, sizes)


def cut_out(
    array: np.ndarray,
    layout: tuple[tuple[str, ...], ...],
    sizes: dict[str, int],
    *,
    digits: dict[str, int],
) -> NDArray[np.int64]:
    for axis, names in enumerate(layout):
        width = array.shape[axis]
        start = 0
        for name in names:
            width //= sizes[name]
            start += digits[name] * width
        array = array.take(range(start, start + width), axis=axis)
    return array


def test_reshape_that_puts_heads_inside_another_axis_has_no_layout() -> None:
    sizes = {"h": 2}
    assert reshaped((8, 2), ((), ("h",)), (16,), sizes=sizes) is None
    assert reshaped((2, 8), (("h",), ()), (16,), sizes=sizes) == (("h",),)
    assert reshaped((2, 8), (("h",), ()), (4, 4), sizes=sizes) == (("h",), ())
    assert reshaped((3, 4), plain(2), (2, 6), sizes=sizes) == plain(2)

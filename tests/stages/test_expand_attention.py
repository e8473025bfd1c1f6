"""The expansion computes what the operators' definition says, prefill and decoding alike."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from genai_core.facts import RopeTable
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.expand_attention import AttentionSpec, expand
from genai_stages.testing import random_core_model


def session(folder: Path, model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    sess: ort.InferenceSession, first: np.ndarray, past: dict[str, np.ndarray]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    feeds = {sess.get_inputs()[0].name: first}
    for wanted in sess.get_inputs()[1:]:
        _, kv_heads, _, head_dim = wanted.shape
        feeds[wanted.name] = past.get(wanted.name, np.zeros((1, kv_heads, 0, head_dim), np.float32))
    names = [output.name for output in sess.get_outputs()]
    found = dict(zip(names, sess.run(names, feeds), strict=True))
    new_past = {k.replace("present", "past"): v for k, v in found.items() if "present" in k}
    return found[names[0]], new_past


def rms(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    normed: np.ndarray = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale
    return normed


def attention(
    spec: AttentionSpec,
    table: RopeTable | None,
    q: NDArray[np.float64],
    k: NDArray[np.float64],
    v: NDArray[np.float64],
    q_norm: NDArray[np.float64] | None,
    k_norm: NDArray[np.float64] | None,
) -> np.ndarray:
    """Definition of genai.Attention from an empty cache, float64, head by head."""
    tokens = q.shape[0]
    out = np.zeros((tokens, spec.num_heads * spec.head_dim))
    positions = np.arange(tokens)
    visible = positions[None] <= positions[:, None]
    if spec.window:
        visible &= positions[None] > positions[:, None] - spec.window

    def prepared(flat: np.ndarray, head: int, norm: np.ndarray | None) -> np.ndarray:
        x = flat[:, head * spec.head_dim : (head + 1) * spec.head_dim]
        if norm is not None:
            x = rms(x, norm, spec.qk_norm_epsilon)
        if not spec.rope:
            return x
        assert table is not None
        pairs = spec.rotary_dim // 2
        angle = positions[:, None] * np.array(table.inv_freq)
        turn = np.exp(1j * angle) * table.attention_factor
        index = np.arange(pairs)
        a, b = (2 * index, 2 * index + 1) if spec.interleaved else (index, index + pairs)
        turned = (x[:, a] + 1j * x[:, b]) * turn
        x = x.copy()
        x[:, a], x[:, b] = turned.real, turned.imag
        return x

    for head in range(spec.num_heads):
        kv = head // (spec.num_heads // spec.kv_heads)
        query, key = prepared(q, head, q_norm), prepared(k, kv, k_norm)
        scores = query @ key.T * spec.scale
        if spec.softcap:
            scores = np.tanh(scores / spec.softcap) * spec.softcap
        scores = np.where(visible, scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        width = spec.head_dim
        out[:, head * width : (head + 1) * width] = probs @ v[:, kv * width : (kv + 1) * width]
    return out


def interpret(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The core graph evaluated node by node in float64."""
    model, facts = read_core(folder)
    values: dict[str, np.ndarray] = {"input_ids": tokens}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        values[name] = value.const_value.numpy().astype(np.float64)
    for node in model.graph:
        # Only attention's norms may be absent; by position: a missing one is no array at all.
        x: list[Any] = [None if v is None else values[v.name or ""] for v in node.inputs]
        match node.op_type:
            case "Gather":
                y = x[0][x[1]]
            case "Linear":
                y = x[0] @ x[1].T + (x[2] if len(x) > 2 else 0)
            case "RMSNormalization":
                y = rms(x[0], x[1], node.attributes["epsilon"].as_float())
            case "Attention":
                spec = AttentionSpec.of(node)
                x += [None] * (5 - len(x))
                y = attention(spec, facts.rope.get(spec.rope), *x)
            case "Add":
                y = x[0] + x[1]
            case "Mul":
                y = x[0] * x[1]
            case "Sigmoid":
                y = 1 / (1 + np.exp(-x[0]))
            case "Tanh":
                y = np.tanh(x[0])
            case other:
                raise AssertionError(other)
        values[node.outputs[0].name or ""] = y
    return values["logits"]


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "gemma": {
        "qk_norm": True,
        "post_norms": True,
        "embedding_scale": True,
        "tied": True,
        "softcap": 5.0,
        "final_softcap": 3.0,
        "windows": (4, 0),
        "local_theta": 100.0,
    },
    "partial": {"rotary_dim": 8, "qkv_bias": True},
    "interleaved": {"interleaved": True, "heads": 6, "kv_heads": 3, "rotary_dim": 12},
    "unrotated": {"rotary_dim": 0, "kv_heads": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_expand_computes_the_definition(tmp_path: Path, variant: str) -> None:
    random_core_model(tmp_path, **VARIANTS[variant])
    tokens = np.random.default_rng(1).integers(0, 512, 11)
    expected = interpret(tmp_path, tokens)
    sess = session(tmp_path, expand(*read_core(tmp_path)))

    whole, _ = run(sess, tokens[None], {})
    np.testing.assert_allclose(whole[0], expected, atol=2e-5)

    first, past = run(sess, tokens[None, :7], {})
    second, past = run(sess, tokens[None, 7:10], past)
    third, _ = run(sess, tokens[None, 10:], past)
    steps = np.concatenate([first, second, third], axis=1)
    np.testing.assert_allclose(steps[0], expected, atol=2e-5)


def test_expand_between_boundaries_equals_the_whole(tmp_path: Path) -> None:
    facts = random_core_model(tmp_path, layers=3)
    model, _ = read_core(tmp_path)
    tokens = np.arange(9)[None]
    whole, _ = run(session(tmp_path, expand(model, facts)), tokens, {})
    stream: np.ndarray = tokens
    cuts = [None, facts.boundaries[1], facts.boundaries[2], None]
    for start, end in itertools.pairwise(cuts):
        part = expand(model, facts, start=start, end=end)
        stream, _ = run(session(tmp_path, part), stream, {})
    np.testing.assert_array_equal(stream, whole)


def test_random_core_model_is_deterministic_and_shares_tied_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        random_core_model(tmp_path / name, tied=True)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert [str(f) for f in files] == [
        "facts.json", "model.onnx", "weights/embed.data", "weights/head.data",
        "weights/layer_000.data", "weights/layer_001.data",
    ]  # fmt: skip
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    model, _ = read_core(tmp_path / "a")
    head = model.graph.initializers["lm_head.weight"].const_value
    table = model.graph.initializers["model.embed_tokens.weight"].const_value
    assert isinstance(head, ir.ExternalTensor)
    assert isinstance(table, ir.ExternalTensor)
    assert (head.location, head.offset) == (table.location, table.offset)
    sizes = json.loads((tmp_path / "a" / "facts.json").read_text())["groups"]
    for group in sizes.values():
        assert (tmp_path / "a" / group["file"]).stat().st_size == group["size_bytes"]

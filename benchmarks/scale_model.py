"""Writes a Llama of 0.4 B parameters with random weights, as an ordinary export with encodings.

    python benchmarks/scale_model.py OUT [--bits 4] [--layers 24] [--seed 0]

What the whole pipeline costs at size cannot be seen on a model of 3 M parameters, and no trained
model of size is at hand offline. The text of this one is noise; its shapes, its graph (as optimum
writes it: dynamic, with past, a mask of -inf, decomposed norms, weights [in, out]), its files and
its AIMET 1.0.0 encodings are like a real one's. Weights are written one after the other, so it
takes the memory of one of them; ranges of activations come from running 24 tokens.

OUT gets model.onnx, model.data (1.7 GB), config.json, model.encodings, tokens.npy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from scale_encodings import asymmetric
from scale_export import Export, Sizes

MASK = -100.0
"""What -inf counts as in the ranges: AIMET's users replace it before they calibrate."""

MOVEMENT = ("Reshape", "Transpose", "Slice", "Unsqueeze", "Expand", "Cast")
"""Operators whose outputs AIMET leaves out of its file."""


def activations(folder: Path, model: onnx.ModelProto, sizes: Sizes) -> list[dict[str, Any]]:
    """Ranges of the tensors that AIMET would give an entry, over one prompt of 24 tokens."""
    produced = {output: node for node in model.graph.node for output in node.output}
    skipped = (*MOVEMENT, "Shape", "Gather", "Range", "And", "LessOrEqual", "Squeeze", "Constant")
    inner = ("/Pow_", "/ReduceMean_", "/Sqrt_", "/Div_")
    norms = tuple(
        f"{name}/{op}_output_0" for name in ("layernorm", "norm") for op in ("Add", "Mul")
    )
    wanted = [
        name
        for name, node in produced.items()
        if node.op_type not in skipped
        and not any(text in name for text in inner)
        and not name.endswith(norms)
        and name != "/model/Add_output_0"
    ]
    known = {value.name for value in model.graph.output}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in wanted:
        if name not in known:
            watched.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    count = 24
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.random.default_rng(1).integers(0, sizes.vocab, (1, count)),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count)[None],
    }
    for value in session.get_inputs()[3:]:
        feeds[value.name] = np.zeros((1, sizes.kv_heads, 0, sizes.head_dim), np.float32)
    entries = []
    for name, values in zip(wanted, session.run(wanted, feeds), strict=True):
        low, high = float(np.where(np.isneginf(values), np.inf, values).min()), float(values.max())
        if np.isneginf(values).any():
            low = min(low, 0.0) + MASK
        # Other tokens go a little further than the few that were run.
        entries.append(asymmetric(name, 1.2 * low, 1.2 * high))
        if name.startswith("present."):
            past = name.replace("present", "past_key_values")
            entries.append(asymmetric(past, 1.2 * low, 1.2 * high))
    return entries


def write(folder: Path, sizes: Sizes, *, bits: int = 4, seed: int = 0) -> None:
    """Write the model, its encodings, config.json and some tokens into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    export = Export(folder, sizes, bits=bits, seed=seed)
    model = export.model()
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    encodings = {
        "activation_encodings": [export.embedding, *activations(folder, model, sizes)],
        "param_encodings": export.params,
        "producer": {"package": "aimet-onnx", "version": "2.42.0"},
        "quantizer_args": {
            "activation_bitwidth": 16,
            "dtype": "int",
            "is_symmetric": True,
            "param_bitwidth": bits,
            "per_channel_quantization": True,
            "quant_scheme": "min_max",
        },
        "version": "1.0.0",
    }
    (folder / "model.encodings").write_text(json.dumps(encodings))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": sizes.theta,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokens = np.random.default_rng(seed + 1).integers(0, sizes.vocab, (4, 64))
    np.save(folder / "tokens.npy", tokens.astype(np.int32))


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write a random Llama of 0.4 B parameters.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--layers", type=int, default=Sizes.layers)
    parser.add_argument("--vocab", type=int, default=Sizes.vocab)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sizes = Sizes(layers=given.layers, vocab=given.vocab)
    write(given.out, sizes, bits=given.bits, seed=given.seed)


if __name__ == "__main__":
    main()

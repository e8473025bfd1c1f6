"""A model as AIMET's LoRA module exports it: branches at its linears, whose weights are inputs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

Floats = NDArray[np.float32]
TARGETS = ("q_proj", "v_proj", "o_proj")


def write_branched(source: Path, folder: Path, *, rank: int = 4, scale: float = 2.0) -> list[str]:
    """Copy a model of two layers with branches at its TARGETS.

    Args:
        source: One of the architecture fixtures.
        folder: Made here.
        rank: That its inputs have.
        scale: Of each branch, a constant of the graph.

    Returns:
        Names of the linears, e.g. `layers.0.self_attn.q_proj`.
    """
    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder)
    model = onnx.load(source / "model.onnx")  # noqa: TID251 - a few kB
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "lora_scale"))
    nodes, found = [], []
    for node in graph.node:
        nodes.append(node)
        path = node.name.strip("/").split("/")
        if node.op_type != "MatMul" or path[-2] not in TARGETS:
            continue
        name = ".".join(path[1:-1])
        found.append(name)
        inputs, outputs = shapes[node.input[1]]
        a, b = names_of(name)
        for half, dims in ((a, [inputs, rank]), (b, [rank, outputs])):
            graph.input.append(helper.make_tensor_value_info(half, TensorProto.FLOAT, dims))
        after, here = node.output[0], f"{node.output[0]}.base"
        node.output[0] = here
        nodes += [
            helper.make_node("MatMul", [node.input[0], a], [f"{after}.down"]),
            helper.make_node("MatMul", [f"{after}.down", b], [f"{after}.up"]),
            helper.make_node("Mul", [f"{after}.up", "lora_scale"], [f"{after}.scaled"]),
            helper.make_node("Add", [here, f"{after}.scaled"], [f"{after}.added"]),
            helper.make_node("Cast", [f"{after}.added"], [after], to=TensorProto.FLOAT),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, folder / "model.onnx")
    return found


def names_of(linear: str) -> tuple[str, str]:
    """The inputs of a linear's branch."""
    return (
        f"base_model.model.{linear}.lora_A.weight",
        f"base_model.model.{linear}.lora_B.weight",
    )


def random_weights(
    sizes: Mapping[str, tuple[int, int]], *, rank: int, used: int, seed: int = 0
) -> dict[str, Floats]:
    """Matrices of the graph's rank whose last columns are zero, as AIMET pads them.

    Args:
        sizes: Linear -> (inputs, outputs).
        rank: Of the graph.
        used: Columns that are not zero.
        seed: Of the weights.
    """
    random = np.random.default_rng(seed)
    made: dict[str, Floats] = {}
    for linear, (inputs, outputs) in sizes.items():
        a, b = np.zeros((inputs, rank), np.float32), np.zeros((rank, outputs), np.float32)
        a[:, :used] = random.standard_normal((inputs, used)) * 0.2
        b[:used] = random.standard_normal((used, outputs)) * 0.2
        made |= dict(zip(names_of(linear), (a, b), strict=True))
    return made


def write_roles(folder: Path, weights: Mapping[str, Floats]) -> Path:
    """An adapter's folder of roles, as a task is given it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lora.safetensors").write_bytes(save(dict(weights)))
    return folder


def logits_of(path: Path, ids: NDArray[np.int64], weights: Mapping[str, Floats]) -> Floats:
    """What ONNX Runtime computes with an adapter's matrices as inputs."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 0 for dim in value.shape]
        if value.name == "input_ids":
            feeds[value.name] = ids[None]
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, ids.size), np.int64)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.size)[None]
        elif "lora" in value.name:
            feeds[value.name] = weights.get(value.name, np.zeros(shape, np.float32))
        else:
            feeds[value.name] = np.zeros([1, shape[1], 0, shape[3]], np.float32)
    found: Floats = session.run(["logits"], feeds)[0][0]
    return found

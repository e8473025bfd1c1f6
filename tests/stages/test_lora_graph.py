"""An adapter in a graph of its own: equal numbers on the model, whose base must be the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from branched_model import Floats, logits_of, names_of, random_weights, write_branched
from models import compiled_float
from onnx import helper, numpy_helper

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import BadAdapter
from genai_core.operations import IngestConfig, LoraImportConfig
from genai_runtime.cpu import CpuSession
from genai_runtime.cpu.adapter_files import read_adapter
from genai_runtime.executor.rows import AdapterUse
from genai_stages.ingest.source.lora_branches import find_stored_branches
from genai_stages.operations import ingest, lora_import
from genai_stages.stage import Context, StageResult

PLAIN = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
RANK = 3
IDS = np.random.default_rng(1).integers(0, 256, 12)
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("core")
    ingest.run({"source": PLAIN}, IngestConfig(), out, Context(out.parent, 1))
    return out


def stored(folder: Path, change: Change = lambda _model: None) -> Path:
    """A use case's graph: the plain model with branches whose weights are initializers."""
    linears = write_branched(PLAIN, folder / "branched", rank=RANK)
    model = onnx.load(folder / "branched" / "model.onnx")  # noqa: TID251 - a few kB
    inputs = {value.name: value for value in model.graph.input if "lora" in value.name}
    sizes = {
        linear: tuple(
            inputs[half].type.tensor_type.shape.dim[axis].dim_value
            for half, axis in zip(names_of(linear), (0, 1), strict=True)
        )
        for linear in linears
    }
    weights: dict[str, Floats] = random_weights(sizes, rank=RANK, used=RANK)
    for name, array in weights.items():
        model.graph.input.remove(inputs[name])
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    change(model)
    (folder / "roles").mkdir()
    onnx.save(model, folder / "roles" / "lora.onnx")
    return folder / "roles"


def imported(core: Path, roles: Path, out: Path) -> StageResult:
    out.mkdir()
    inputs = {"adapter": roles, "core": core, "assets": PLAIN}
    return lora_import.run(inputs, LoraImportConfig(), out, Context(out, 1))


def test_adapter_of_a_graph_computes_what_that_graph_does(core: Path, tmp_path: Path) -> None:
    roles = stored(tmp_path)
    result = imported(core, roles, tmp_path / "out")
    assert (result.facts["rank"], result.facts["linears"]) == (RANK, 6)
    session = CpuSession(
        compiled_float(tmp_path / "model", core, layers=2), context_length=16, threads=1,
        adapters={"one": read_adapter(tmp_path / "out" / ADAPTER_FILE)}, worn=[AdapterUse("one")],
    )  # fmt: skip
    expected = logits_of(roles / "lora.onnx", IDS, {})
    np.testing.assert_allclose(session.forward(IDS), expected, atol=1e-4)
    assert np.abs(expected - logits_of(PLAIN / "model.onnx", IDS, {})).max() > 0.1


def other_weight(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name.endswith("layers.1/mlp/up_proj/MatMul"))
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    array = numpy_helper.to_array(tensor).copy()
    array[3, 5] += 1.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def other_node(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Tanh"


def constants(model: onnx.ModelProto) -> list[tuple[onnx.TensorProto, Floats]]:
    """All that hold floats, in nodes and beside them."""
    held = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    found = [t for t in [*held, *model.graph.initializer] if t.data_type == 1]
    return [(tensor, numpy_helper.to_array(tensor)) for tensor in found]


def other_waves(model: onnx.ModelProto) -> None:
    """Rotary frequencies of another base."""
    for tensor, array in constants(model):
        if array.ndim > 0 and array.size < 64 and array.max() == 1.0 and array.min() < 0.1:
            tensor.CopyFrom(numpy_helper.from_array(array**1.2, tensor.name))


def other_epsilon(model: onnx.ModelProto) -> None:
    for tensor, array in constants(model):
        if array.size == 1 and 0 < array.reshape(-1)[0] < 1e-4:
            tensor.CopyFrom(numpy_helper.from_array(array * 10, tensor.name))


def other_input(model: onnx.ModelProto) -> None:
    """The gate's sigmoid multiplies another tensor of the same size."""
    sigmoid = next(n for n in model.graph.node if n.op_type == "Sigmoid")
    product = next(n for n in model.graph.node if sigmoid.output[0] in n.input)
    product.input[:] = [sigmoid.output[0], sigmoid.output[0]]


def endless(model: onnx.ModelProto) -> None:
    """A branch that leads into itself."""
    for node in model.graph.node:
        if node.output[0].endswith(".scaled"):
            node.output[0] = node.input[0]


def no_branches(model: onnx.ModelProto) -> None:
    plain = onnx.load(PLAIN / "model.onnx")  # noqa: TID251 - a few kB
    model.CopyFrom(helper.make_model(plain.graph, opset_imports=plain.opset_import))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_weight, r"its base differs from the model in .*: 1 of 6144 values"),
        (other_node, "without its branches its graph is not the model's: at node"),
        (other_waves, "its base differs from the model in its rotary tables"),
        (other_epsilon, r"its base differs from the model at .*: epsilon is"),
        (other_input, r"its base differs from the model at .*Mul\): it reads other tensors"),
        (no_branches, "its graph has no LoRA branches"),
    ],
)
def test_import_refuses_a_graph_of_another_base_with_what_differs(
    core: Path, tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(BadAdapter, match=words):
        imported(core, stored(tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out" / ADAPTER_FILE).exists()


def test_a_branch_that_leads_into_itself_is_none(tmp_path: Path) -> None:
    model = onnx.load(stored(tmp_path) / "lora.onnx")  # noqa: TID251 - a few kB
    assert len(find_stored_branches(model)) == 6
    endless(model)
    assert find_stored_branches(model) == ()

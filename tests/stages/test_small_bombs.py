"""Small files that ask for much end in a sentence before the memory is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_stages.testing_sources import write_source

MOST_MEMORY = 1 << 30
"""Resident bytes of an ingest, its libraries included; what is asked for is 4 GiB and more."""

# Ingest as a program, so that its memory can be limited and read.
PROGRAM = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
from genai_core.errors import GenAIError
from genai_core.memory import peak_resident_bytes
from genai_core.operations import IngestConfig
from genai_stages.operations import ingest
from genai_stages.stage import Context
for folder in map(Path, sys.argv[1:]):
    try:
        (folder / "out").mkdir()
        ingest.run({"source": folder / "source"}, IngestConfig(), folder / "out",
                   Context(scratch=folder / "scratch"))
        said, code = "built", 0
    except GenAIError as error:
        said, code = str(error), error.exit_code
    except BaseException as error:
        said, code = f"{type(error).__name__}: {error}", 1
    print(json.dumps([folder.name, code, said, peak_resident_bytes()]), flush=True)
"""


def numbers(*values: int, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def zeros(name: str, *shape: int) -> list[onnx.NodeProto]:
    """Nodes that make zeros of a size that is within what is folded."""
    size = numpy_helper.from_array(np.array(shape, np.int64))
    return [
        helper.make_node("Constant", [], [f"{name}_size"], value=size),
        helper.make_node("ConstantOfShape", [f"{name}_size"], [name]),
    ]


def bomb(kind: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and initializers that make `big`."""
    make, end = helper.make_node, ["big"]
    one = numpy_helper.from_array(np.zeros((1, 1), np.float32), "x")
    if kind == "ConstantOfShape":
        return [make(kind, ["s"], end)], [numbers(1 << 31, 1 << 31, name="s")]
    if kind == "Range":
        ends = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in
                (("a", 0), ("b", 1 << 32), ("c", 1))]  # fmt: skip
        return [make(kind, ["a", "b", "c"], end)], ends
    if kind in ("Expand", "Tile"):
        return [make(kind, ["x", "s"], end)], [one, numbers(1 << 16, 1 << 16, name="s")]
    if kind == "Pad":
        return [make(kind, ["x", "s"], end)], [one, numbers(0, 0, 1 << 16, 1 << 16, name="s")]
    if kind == "Add":
        rows, columns = zeros("r", 1 << 20, 1), zeros("c", 1, 1 << 20)
        return [*rows, *columns, make(kind, ["r", "c"], end)], []
    if kind == "Einsum":
        rows, columns = zeros("r", 1 << 20), zeros("c", 1 << 20)
        return [*rows, *columns, make(kind, ["r", "c"], end, equation="i,j->ij")], []
    if kind == "Gather":
        table, index = zeros("r", 1, 1 << 20), zeros("i", 1 << 20)
        cast = make("Cast", ["i"], ["which"], to=TensorProto.INT64)
        return [*table, *index, cast, make(kind, ["r", "which"], end)], []
    if kind == "Resize":
        return [make(kind, ["x", "", "", "s"], end)], [one, numbers(1 << 16, 1 << 16, name="s")]
    if kind == "RandomNormal":
        return [make(kind, [], end, shape=[1 << 16, 1 << 16])], []
    assert kind == "tokens"
    row = make("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT)
    wide = make("Unsqueeze", ["ids", "axes"], ["column"])
    spread = make("Expand", ["column", "s"], end)
    return [row, wide, spread], [numbers(2, name="axes"), numbers(1, 1, 1 << 32, name="s")]


KINDS = ("ConstantOfShape", "Range", "Expand", "Tile", "Pad", "Add", "Einsum", "Gather", "Resize",
         "RandomNormal", "tokens")  # fmt: skip


def write_bomb(folder: Path, kind: str) -> None:
    """A source whose logits have the bomb's largest value added to them."""
    write_source(folder)
    path = folder / "model.onnx"
    model = onnx.ModelProto.FromString(path.read_bytes())
    nodes, initializers = bomb(kind)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "plain_logits"
    nodes += [
        helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["plain_logits", "number"], ["logits"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size < 1 << 20


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, int]]:
    """Kind -> exit code, what was said, and the largest memory so far."""
    root = tmp_path_factory.mktemp("bombs")
    for kind in KINDS:
        write_bomb(root / kind / "source", kind)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(root / kind) for kind in KINDS)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line[0] for line in lines] == list(KINDS), ran.stderr[-2000:]
    return {name: (code, said, peak) for name, code, said, peak in lines}


@pytest.mark.parametrize("kind", KINDS)
def test_ingest_refuses_in_time_when_a_small_file_asks_for_much(
    ended: dict[str, tuple[int, str, int]], kind: str
) -> None:
    code, said, peak = ended[kind]
    assert code == 2, said
    assert "nothing here can hold" in said
    assert "node " in said
    assert peak < MOST_MEMORY

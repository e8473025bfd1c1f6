"""External data that leads out of the model's folder, at every place of a graph: none gets in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import GenAIError
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.operations import IngestConfig
from genai_core.sources.source_files import inspect_source
from genai_stages.operations import ingest
from genai_stages.stage import Context

MODEL = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
SECRET = np.array([12345.5] * 64, np.float32)
PLACES = ("initializer", "constant", "function", "subgraph", "sparse")
WAYS = ("absolute", "up", "through a folder", "link", "link to a folder", "device", "fifo")
CASES = [(place, way, usual) for place in PLACES for way in WAYS for usual in (True, False)]
FEW = [case for number, case in enumerate(CASES) if number % 7 == 0]


def marked(place: str) -> onnx.ModelProto:
    """The fixture with a tensor at a place; its data is still to be named."""
    model = onnx.ModelProto()
    model.ParseFromString((MODEL / "model.onnx").read_bytes())
    graph, tensor = model.graph, TensorProto(name="leak", data_type=1, dims=[64])
    tensor.doc_string = "HERE"
    if place == "initializer":
        graph.initializer.append(tensor)
    elif place == "constant":
        graph.node.insert(0, helper.make_node("Constant", [], ["leak"], value=tensor))
    elif place == "function":
        function = model.functions.add(name="F", domain="d")
        function.output.append("y")
        function.node.add().CopyFrom(helper.make_node("Constant", [], ["y"], value=tensor))
        function.opset_import.add(domain="", version=model.opset_import[0].version)
        model.opset_import.add(domain="d", version=1)
        graph.node.insert(0, helper.make_node("F", [], ["leak"], domain="d"))
    elif place == "subgraph":
        inner = helper.make_graph(
            [helper.make_node("Identity", ["li"], ["lo"])],
            "g",
            [],
            [helper.make_tensor_value_info("lo", 1, [64])],
        )
        tensor.name = "li"
        inner.initializer.append(tensor)
        graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
        branches = {"then_branch": inner, "else_branch": inner}
        graph.node.insert(0, helper.make_node("If", ["cond"], ["leak"], **branches))
    else:
        sparse = graph.sparse_initializer.add(dims=[64])
        sparse.values.CopyFrom(tensor)
        sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(64), "idx"))
    end = graph.output[0].name  # what the logits are made of
    node = next(node for node in graph.node if end in node.output)
    node.output[list(node.output).index(end)] = "before"
    graph.node.add().CopyFrom(helper.make_node("ReduceMax", ["leak"], ["most"], keepdims=0))
    graph.node.add().CopyFrom(helper.make_node("Add", ["before", "most"], [end]))
    return model


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


def with_data_at(place: str, location: str, *, usual: bool) -> bytes:
    """The model's bytes; unusual ones have value before key, which is the same to protobuf."""
    model = marked(place)
    found = list(tensors(model.graph))
    found += [a.t for f in model.functions for node in f.node for a in node.attribute]
    for tensor in found:
        if tensor.doc_string == "HERE":
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
    data: bytes = model.SerializeToString()
    if usual:
        return data
    value = location.encode()
    ordered = b"\x0a\x08location\x12" + bytes([len(value)]) + value
    turned = b"\x12" + bytes([len(value)]) + value + b"\x0a\x08location"
    assert ordered in data
    return data.replace(ordered, turned)


def lay(folder: Path, place: str, way: str, *, usual: bool) -> Path:
    """A model's folder whose external data leads elsewhere."""
    source, secret = folder / "source", folder / "secret.bin"
    (source / "sub").mkdir(parents=True)
    SECRET.tofile(secret)
    (folder / "aside").mkdir()
    shutil.copy(secret, folder / "aside" / "secret.bin")
    location = {
        "absolute": str(secret),
        "up": "../secret.bin",
        "through a folder": "sub/../../secret.bin",
        "link": "link.bin",
        "link to a folder": "aside/secret.bin",
        "device": "/dev/zero",
        "fifo": "fifo",
    }[way]
    if len(location) > 120:
        pytest.skip("the folder's name is too long for these bytes")
    (source / "link.bin").symlink_to(secret)
    (source / "aside").symlink_to(folder / "aside")
    os.mkfifo(source / "fifo")
    shutil.copy(MODEL / "config.json", source / "config.json")
    (source / "model.onnx").write_bytes(with_data_at(place, location, usual=usual))
    return source


@pytest.mark.parametrize(("place", "way", "usual"), CASES)
def test_inspect_source_takes_no_file_from_outside_the_folder(
    tmp_path: Path, place: str, way: str, usual: bool
) -> None:
    source = lay(tmp_path, place, way, usual=usual)
    spec = BuildSpec.model_validate({"model": {"source": str(source)}, "targets": ["cpu"]})
    if usual:  # what core's look at the bytes finds
        with pytest.raises(GenAIError) as raised:
            inspect_source(spec, source, FileCache(None))
        assert raised.value.exit_code == 2
    else:
        found = inspect_source(spec, source, FileCache(None))
        assert set(found.files) == {"model.onnx", "config.json"}, "ingest sees these alone"


def refused_by_ingest(folder: Path, place: str, way: str, *, usual: bool) -> None:
    source, out = lay(folder, place, way, usual=usual), folder / "out"
    out.mkdir()
    # No link comes into the folder of roles that ingest is given.
    for name in ("link.bin", "aside"):
        (source / name).unlink()
    with pytest.raises(GenAIError) as raised:
        ingest.run({"source": source}, IngestConfig(), out, Context(folder / "work"))
    assert raised.value.exit_code == 2
    if place != "sparse":  # which nothing here reads
        leads_out = way in {"absolute", "up", "through a folder", "device"}
        words = "lies outside the model's folder" if leads_out else "is missing"
        assert words in raised.value.message, "refused before it was read"
    leaked = SECRET[:1].tobytes()
    for path in out.rglob("*"):
        assert not path.is_file() or leaked not in path.read_bytes()


@pytest.mark.parametrize(("place", "way", "usual"), FEW)
def test_ingest_takes_nothing_from_outside_the_folder(
    tmp_path: Path, place: str, way: str, usual: bool
) -> None:
    refused_by_ingest(tmp_path, place, way, usual=usual)


@pytest.mark.long
@pytest.mark.parametrize(("place", "way", "usual"), CASES)
def test_ingest_takes_nothing_from_outside_the_folder_at_any_place(
    tmp_path: Path, place: str, way: str, usual: bool
) -> None:
    refused_by_ingest(tmp_path, place, way, usual=usual)

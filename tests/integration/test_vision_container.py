"""A model that reads pictures, by the commands that users type."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from builds import EXAMPLE, Built
from numpy.typing import NDArray
from PIL import Image

PREFIX = [1, 3, 205]
SUFFIX = [205, 61, 78, 287, 392, 82, 273, 346, 298, 299, 379, 71, 271, 37, 6, 205, 4, 205]
"""What the encoder was trained with, around a picture."""
QUESTION = "What color is the square?"
ANSWERS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
TOKENS = ["--prompt-tokens", ",".join(map(str, [*PREFIX, 0, *SUFFIX]))]


def document(**vision: Any) -> dict[str, Any]:
    """The example's YAML with absolute sources."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLE / "vision.yaml").read_text())
    found["spec"]["model"]["source"] = str(EXAMPLE / "model")
    found["spec"]["vision"] |= {"source": str(EXAMPLE / "vision"), **vision}
    return found


def painted(folder: Path, color: str, *, seed: int = 0) -> Path:
    """A square of a color on grey noise, as the encoder's pictures were."""
    noise = np.random.default_rng(seed).integers(90, 166, (32, 32, 1), np.uint8)
    pixels = np.repeat(noise, 3, axis=2)
    pixels[10:22, 8:20] = ANSWERS[color]
    path = folder / f"{color}-{seed}.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def container(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int8: everything but the encoder and the package is the plain build's."""
    file = tmp_path_factory.mktemp("vision") / "vision.yaml"
    file.write_text(yaml.safe_dump(document()))
    told = built.build("-f", file)
    assert told["tasks"]["run"] == 2, "vision_import and package"
    assert built.build("-f", file)["tasks"]["run"] == 0
    return Path(told["containers"]["cpu"]["path"])


@dataclass(frozen=True)
class Reference:
    """The source graphs in ONNX Runtime, the model's table taken out of it."""

    encoder: ort.InferenceSession
    model: ort.InferenceSession
    table: NDArray[np.float32]

    def answer(self, image: Path, count: int) -> tuple[list[int], list[float]]:
        """Greedy tokens, and by how much each is ahead of the second."""
        pixels = np.asarray(Image.open(image), np.float32).transpose(2, 0, 1)[None] / 255
        (seen,) = self.encoder.run(None, {"pixel_values": (pixels - 0.5) / 0.5})
        parts = [self.table[PREFIX], seen[0], self.table[SUFFIX]]
        embeds, said, margins = np.concatenate(parts), list[int](), list[float]()
        for _ in range(count):
            size = len(embeds)
            feeds: dict[str, NDArray[Any]] = {
                "inputs_embeds": embeds[None],
                "attention_mask": np.ones((1, size), np.int64),
                "position_ids": np.arange(size)[None],
            }
            for value in self.model.get_inputs():
                if value.name.startswith("past_key_values."):
                    feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            logits = self.model.run(["logits"], feeds)[0][0, -1]
            second, first = np.argsort(logits)[-2:]
            said.append(int(first))
            margins.append(float(logits[first] - logits[second]))
            embeds = np.concatenate([embeds, self.table[[first]]])
        return said, margins


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Made here from the example's own files, by nothing of this project."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("model.onnx", "model.data"):  # onnx reads no hard links
        shutil.copyfile(EXAMPLE / "model" / name, folder / name)
    proto = onnx.load(folder / "model.onnx")  # noqa: TID251 - a copy
    (look,) = [n for n in proto.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids"]
    (table,) = [t for t in proto.graph.initializer if t.name == look.input[0]]
    rows = onnx.numpy_helper.to_array(table)
    embeds = onnx.helper.make_tensor_value_info(
        "inputs_embeds", onnx.TensorProto.FLOAT, [1, "T", rows.shape[1]]
    )
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = {look.output[0]: "inputs_embeds"}.get(name, name)
            if name == "input_ids":  # its shape is read
                node.input[place] = "input_ids"
    proto.graph.node.remove(look)
    shapes = [n for n in proto.graph.node if "input_ids" in n.input]
    for node in shapes:
        assert node.op_type == "Shape"
        node.input[0] = "ids_of_shape"
    if shapes:
        proto.graph.node.insert(
            0,
            onnx.helper.make_node(
                "ReduceSum", ["inputs_embeds", "last_axis"], ["ids_of_shape"], keepdims=0
            ),
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last_axis"))
    inputs = [value for value in proto.graph.input if value.name != "input_ids"]
    del proto.graph.input[:]
    proto.graph.input.extend([embeds, *inputs])
    buffer = io.BytesIO()
    onnx.save(proto, buffer)
    session = ort.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    encoder = ort.InferenceSession(
        (EXAMPLE / "vision" / "vision_encoder.onnx").read_bytes(),
        providers=["CPUExecutionProvider"],
    )
    return Reference(encoder, session, np.asarray(rows, np.float32))


@pytest.fixture(scope="module")
def floating(built: Built, container: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in floating point, which must be the source's numbers."""
    del container  # built before, so that it finds no encoder in the store
    found = document()
    found["metadata"]["name"] = "vision-float"
    found["spec"]["quantization"] = {"cpuPrecision": "Float", "fidelity": {"budgetNats": 1}}
    file = tmp_path_factory.mktemp("vision-float") / "vision.yaml"
    file.write_text(yaml.safe_dump(found))
    return Path(built.build("-f", file)["containers"]["cpu"]["path"])


@pytest.mark.parametrize("color", ["red", "blue"])
def test_run_says_what_the_source_graphs_say_of_a_picture(
    built: Built, floating: Path, reference: Reference, tmp_path: Path, color: str
) -> None:
    image = painted(tmp_path, color)
    expected, margins = reference.answer(image, 8)
    asked: tuple[str | Path, ...] = ("run", floating, *TOKENS, "--ignore-end", "--json")
    got = built.program.ok(*asked, "--max-tokens", "8", "--image", image).json
    assert got["metrics"]["promptTokens"] == len(PREFIX) + 16 + len(SUFFIX)
    agree = [a == b for a, b in zip(got["tokens"], expected, strict=True)]
    near = next((place for place, margin in enumerate(margins) if margin < 0.01), 8)
    assert all(agree[:near]), (got["tokens"], expected, margins)
    assert near >= 3, "the answer itself is no near tie"
    assert got["text"].startswith(color)


@pytest.mark.parametrize("color", ["green", "blue"])
def test_a_quantized_container_tells_the_color_of_a_square(
    built: Built, container: Path, tmp_path: Path, color: str
) -> None:
    image = painted(tmp_path, color, seed=1)
    asked = ("run", container, "--chat", "--prompt", QUESTION, "--image", image)
    assert built.program.ok(*asked).out.strip() == color
    guessed = built.program.ok(*asked, "--speculation", "ngram")
    assert guessed.out.strip() == color


def test_run_reads_pictures_in_the_order_of_their_places(
    built: Built, container: Path, tmp_path: Path
) -> None:
    red, blue = painted(tmp_path, "red"), painted(tmp_path, "blue")
    text = "<|user|>\n<image>\n<image>\nWhat color is the square?<|end|>\n<|assistant|>\n"
    asked = ("run", container, "--prompt", text, "--json", "--ignore-end", "--max-tokens", "6")
    one = built.program.ok(*asked, "--image", red, "--image", blue).json
    other = built.program.ok(*asked, "--image", blue, "--image", red).json
    assert one["metrics"]["promptTokens"] == other["metrics"]["promptTokens"]
    assert one["tokens"] != other["tokens"]


def test_text_is_answered_as_without_an_encoder(built: Built, container: Path) -> None:
    asked = ("--prompt", "def __init__(self, <image>", "--max-tokens", "24", "--json")
    with_encoder = built.program.ok("run", container, *asked).json
    assert with_encoder["tokens"] == built.program.ok("run", built.container("cpu"), *asked).json[
        "tokens"
    ]  # fmt: skip


def test_the_container_names_its_encoder_and_vouches_for_it(
    built: Built, container: Path, tmp_path: Path
) -> None:
    manifest = json.loads((container / "manifest.json").read_bytes())
    below = {name for name in manifest["files"] if name.startswith("vision/")}
    assert below == {"vision/vision.json", "vision/vision_encoder.onnx"}, "nothing measured"
    told = built.program.ok("inspect", container).out
    assert "<image> stands for a picture: 32 x 32 pixels, 16 tokens" in told
    assert built.program.ok("verify", container).code == 0
    bad = Path(shutil.copytree(container, tmp_path / "bad"))
    encoder = bad / "vision" / "vision_encoder.onnx"
    data = bytearray(encoder.read_bytes())
    data[len(data) // 2] ^= 1
    encoder.unlink()
    encoder.write_bytes(data)
    refused = built.program("run", bad, *TOKENS, "--image", painted(tmp_path, "red"))
    assert refused.code != 0
    assert "vision/vision_encoder.onnx" in refused.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompt", "a", "--image", "red.png"), "1 picture for 0 <image> in the prompt"),
        (("--prompt", "<image><image>", "--image", "red.png"), "1 picture for 2 <image>"),
        (("--prompt", "<image>", "--image", "none.png"), "none.png"),
        (("--prompt", "<image>", "--image", "text.png"), "no picture of a known format"),
    ],
)
def test_run_refuses_pictures_that_do_not_fit(
    built: Built, container: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    painted(tmp_path, "red").rename(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no picture")
    given = [str(tmp_path / a) if a.endswith(".png") else a for a in arguments]
    refused = built.program("run", container, *given)
    assert refused.code == 2
    assert told in refused.err
    assert refused.err.count("\n") == 1


def test_run_refuses_a_picture_for_a_container_that_reads_none(
    built: Built, tmp_path: Path
) -> None:
    asked = ("run", built.container("cpu"), "--prompt", "<image>")
    refused = built.program(*asked, "--image", painted(tmp_path, "red"))
    assert refused.code == 2
    assert "the container reads no pictures" in refused.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"targets": ["sm8750", "cpu"]}, "spec.vision: encoders of pictures are built into cpu"),
        ({"vision": {"source": "nowhere"}}, "spec.vision.source: "),
        (
            {"vision": {"source": str(EXAMPLE / "vision"), "tokensPerImage": "Dynamic"}},
            "spec.vision.tokensPerImage: tokensPerImage is Dynamic, and the encoder takes 32 x 32",
        ),
        (
            {"vision": {"source": str(EXAMPLE / "vision"), "onnx": "other.onnx"}},
            "spec.vision.onnx: there is no file",
        ),
    ],
    ids=range(4),
)
def test_build_refuses_an_encoder_that_does_not_fit(
    built: Built, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    found = document()
    found["spec"] |= change
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(found))
    refused = built.program("build", "-f", file, "--store", built.store)
    assert refused.code == 2
    assert told in refused.err


@pytest.fixture(scope="module")
def any_size(built: Built, container: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an encoder of free height and width: a place for each 8 x 8 pixels."""
    del container
    folder = tmp_path_factory.mktemp("any-size")
    weight = np.random.default_rng(3).normal(size=(192, 3, 8, 8)).astype(np.float32) / 50
    float32, make = onnx.TensorProto.FLOAT, onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["pixel_values", "weight"], ["patches"], strides=[8, 8]),
            make("Reshape", ["patches", "flat"], ["columns"]),
            make("Transpose", ["columns"], ["image_embeds"], perm=[0, 2, 1]),
        ],
        "encoder",
        [onnx.helper.make_tensor_value_info("pixel_values", float32, [1, 3, "height", "width"])],
        [onnx.helper.make_tensor_value_info("image_embeds", float32, [1, "places", 192])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.array([1, 192, -1]), "flat"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    proto = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    (folder / "any.onnx").write_bytes(proto.SerializeToString())
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 8, "max_pixels": 2048}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    found = document(source=str(folder), tokensPerImage="Dynamic")
    found["metadata"]["name"] = "any-size"
    file = folder / "vision.yaml"
    file.write_text(yaml.safe_dump(found))
    return Path(built.build("-f", file)["containers"]["cpu"]["path"])


def test_an_encoder_of_any_size_gives_each_picture_its_own_places(
    built: Built, any_size: Path, tmp_path: Path
) -> None:
    told = built.program.ok("inspect", any_size).out
    assert "up to 2048 pixels, sides in multiples of 8, as many tokens" in told
    for size, places in (((32, 16), 8), ((16, 32), 8), ((40, 40), 25), ((4000, 1000), 22)):
        image = tmp_path / f"{size[0]}x{size[1]}.png"
        Image.new("RGB", size, (9, 99, 199)).save(image)
        asked: tuple[str | Path, ...] = ("run", any_size, *TOKENS, "--max-tokens", "2", "--json")
        got = built.program.ok(*asked, "--image", image).json
        assert got["metrics"]["promptTokens"] == len(PREFIX) + places + len(SUFFIX)

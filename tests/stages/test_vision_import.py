"""An encoder of pictures is held against its model, and refused with both numbers."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from genai_core.container.vision_info import VisionInfo
from genai_core.errors import BadModel
from genai_core.names import VISION, VISION_ROLE
from genai_core.operations import VisionImportConfig
from genai_runtime.vision.encoder import VisionEncoder
from genai_runtime.vision.looking import look
from genai_stages.operations import vision_import
from genai_stages.stage import Context, StageResult
from genai_stages.testing import random_core_model

HIDDEN, SIDE, PATCH = 64, 8, 4
TOKENIZER = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model" / "tokenizer.json"
SAID: dict[str, Any] = {
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
    "resample": 3,
}
FREE = {**SAID, "patch_size": PATCH, "max_pixels": 256}
del FREE["size"]


def write_encoder(
    folder: Path,
    *,
    hidden: int = HIDDEN,
    sides: Sequence[int | str] = (SIDE, SIDE),
    inputs: Sequence[str] = ("pixel_values",),
    kind: int = TensorProto.FLOAT,
    scale: float = 1.0,
) -> None:
    """A convolution over patches of 4 x 4, flattened to [1, tokens, hidden]."""
    weight = np.full((hidden, 3, PATCH, PATCH), scale, np.float32)
    shape: list[int | str] = [1, 3, *sides]
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "weight"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["patches", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["image_embeds"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, [1, "n", hidden])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1, hidden, -1]), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / VISION_ROLE).write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    random_core_model(folder)
    return folder


def imported(
    core: Path,
    folder: Path,
    said: dict[str, Any] | None = None,
    *,
    config: VisionImportConfig | None = None,
    model_config: dict[str, Any] | None = None,
    **encoder: Any,
) -> tuple[StageResult, VisionInfo]:
    source, assets, out = folder / "source", folder / "assets", folder / "out"
    for made in (source, assets, out):
        made.mkdir()
    if not (folder / "own.onnx").exists():
        write_encoder(source, **encoder)
    else:
        shutil.copyfile(folder / "own.onnx", source / VISION_ROLE)
    (source / "preprocessor_config.json").write_text(json.dumps(SAID if said is None else said))
    (assets / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (assets / "config.json").write_text(json.dumps(model_config or {}))
    result = vision_import.run(
        {VISION: source, "core": core, "assets": assets},
        config or VisionImportConfig(image_token="<image>"),
        out,
        Context(folder / "scratch", 1),
    )
    return result, VisionInfo.model_validate_json((out / "vision.json").read_bytes())


def test_run_writes_the_encoder_and_how_it_is_driven(core: Path, tmp_path: Path) -> None:
    result, info = imported(core, tmp_path)
    assert (info.tokens, info.hidden_size) == (4, HIDDEN)
    how = info.preprocessing
    assert (how.size, how.resample, how.scale) == ((SIDE, SIDE), "bicubic", 1 / 255)
    assert (how.mean, how.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    assert (info.image_token_id, info.in_vocabulary) == (0, False)
    assert "the tokenizer has no token <image>" in result.warnings[0]
    kept, given = tmp_path / "out" / VISION_ROLE, tmp_path / "source" / VISION_ROLE
    assert kept.read_bytes() == given.read_bytes()


def test_run_takes_the_tokenizers_own_token_without_a_word(core: Path, tmp_path: Path) -> None:
    result, info = imported(core, tmp_path, config=VisionImportConfig(image_token="<|user|>"))
    assert (info.image_token_id, info.in_vocabulary, result.warnings) == (3, True, ())


def test_run_takes_an_encoder_of_any_size(core: Path, tmp_path: Path) -> None:
    config = VisionImportConfig(image_token="<image>", dynamic=True)
    result, info = imported(core, tmp_path, FREE, config=config, sides=("h", "w"))
    assert (info.tokens, info.preprocessing.size) == (None, None)
    assert (info.preprocessing.multiple, info.preprocessing.most_pixels) == (PATCH, 256)
    assert result.facts["tokens"] == [16, 32]
    encoder = VisionEncoder(tmp_path / "out", info, threads=1)
    for size, places in (((32, 8), 16), ((8, 8), 4), ((400, 400), 16)):
        data = io.BytesIO()
        Image.new("RGB", size).save(data, "PNG")
        assert look(encoder, data.getvalue(), where="a").shape == (places, HIDDEN)


@pytest.mark.parametrize(
    ("said", "scale", "mean", "std"),
    [
        ({**SAID, "do_rescale": False}, 1.0, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
        ({**SAID, "rescale_factor": 0.5}, 0.5, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
        ({**SAID, "do_normalize": False}, 1 / 255, (0, 0, 0), (1, 1, 1)),
    ],
)
def test_run_reads_what_preprocessing_leaves_out(
    core: Path, tmp_path: Path, said: dict[str, Any], scale: float, mean: object, std: object
) -> None:
    how = imported(core, tmp_path, said)[1].preprocessing
    assert (how.scale, how.mean, how.std) == (scale, mean, std)


def test_run_cuts_the_middle_out_where_preprocessing_says_so(core: Path, tmp_path: Path) -> None:
    said = {**SAID, "size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": SIDE}
    how = imported(core, tmp_path, said)[1].preprocessing
    assert (how.size, how.shortest_edge) == ((SIDE, SIDE), 10)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in SAID.items() if name != key}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (without("image_mean"), "preprocessor_config.json or config.json does not say image_mean"),
        ({**SAID, "image_std": [1, 0, 1]}, "std is above 0"),
        ({**SAID, "image_std": [1, 1]}, "image_std, three numbers"),
        ({**SAID, "size": 16}, "yields 16 x 16 pixels, the encoder takes 8 x 8"),
        ({**SAID, "size": {"shortest_edge": 8}}, "leaves the other as it is"),
        (
            {**SAID, "size": {"shortest_edge": 4}, "do_center_crop": True, "crop_size": 8},
            "brings the shorter side to 4, and cuts 8 x 8",
        ),
        ({**SAID, "resample": 9}, "resample 9 is none of Pillow's numbers"),
        ({**SAID, "rescale_factor": -1}, "rescale_factor -1 is no number above 0"),
        ({**SAID, "do_image_splitting": True}, "cuts pictures into tiles"),
        ({**SAID, "do_pad": True}, "pads pictures"),
    ],
    ids=range(10),
)
def test_run_refuses_preprocessing_that_does_not_fit(
    core: Path, tmp_path: Path, said: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadModel, match=told) as refused:
        imported(core, tmp_path, said)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ({"hidden": 48}, "have the size 48, the model's hidden size is 64"),
        ({"inputs": ("pixel_values", "grid")}, r"takes 2 tensors \(pixel_values, grid\), not one"),
        ({"kind": TensorProto.UINT8}, "takes pixel_values as uint8, not float32 or float16"),
        ({"sides": (SIDE,)}, r"has the shape \[1, 3, 8\], not \[1, 3, height, width\]"),
        ({"sides": (SIDE, "w")}, "one side of its input pixel_values"),
        ({"sides": ("h", "w")}, "tokensPerImage is Fixed, and the encoder takes pixels of any"),
        ({"scale": float("nan")}, "yields NaN or infinity"),
    ],
    ids=range(7),
)
def test_run_refuses_an_encoder_that_is_not_the_models(
    core: Path, tmp_path: Path, encoder: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadModel, match=told) as refused:
        imported(core, tmp_path, **encoder)
    assert refused.value.where.startswith("spec.vision")
    assert refused.value.remedy


def test_run_refuses_a_file_that_is_no_encoder(core: Path, tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadModel, match="not an ONNX file"):
        imported(core, tmp_path)


def test_run_refuses_data_outside_the_folder(core: Path, tmp_path: Path) -> None:
    write_encoder(tmp_path)
    model = onnx.load_from_string((tmp_path / VISION_ROLE).read_bytes())
    (weight, _) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (tmp_path / "own.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModel, match="'weight' may not lie there"):
        imported(core, tmp_path)


@pytest.mark.parametrize(
    ("model_config", "told"),
    [
        ({"model_type": "gemma3_text"}, "lets the tokens of a picture see later ones"),
        ({"rope_scaling": {"mrope_section": [1, 1, 2]}}, "positions of three axes"),
    ],
)
def test_run_refuses_families_that_read_pictures_otherwise(
    core: Path, tmp_path: Path, model_config: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadModel, match=told):
        imported(core, tmp_path, model_config=model_config)


def test_run_refuses_a_model_that_scales_its_embeddings(tmp_path: Path) -> None:
    random_core_model(tmp_path / "core", None, embedding_scale=True)
    with pytest.raises(BadModel, match="multiplies its embeddings before its first layer"):
        imported(tmp_path / "core", tmp_path)


def test_run_refuses_dynamic_where_every_size_gives_as_many_tokens(
    core: Path, tmp_path: Path
) -> None:
    config = VisionImportConfig(image_token="<image>", dynamic=True)
    with pytest.raises(BadModel, match="the encoder takes 8 x 8 pixels alone"):
        imported(core, tmp_path, FREE, config=config)

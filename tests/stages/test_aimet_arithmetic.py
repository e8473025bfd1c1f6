"""Putting values on a grid and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from genai_core.errors import BadEncodings, BadInput
from genai_stages.aimet.arithmetic import dequantize, fake_quantize, quantize
from genai_stages.aimet.checks import refuse_foreign, refuse_infinite_masks
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor
from genai_stages.aimet.read import read_encodings

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "encodings"

values = arrays.arrays(
    np.float32, (4, 6), elements=st.floats(-50, 50, width=32, allow_subnormal=False)
)


@given(values, st.sampled_from([4, 8, 16]), st.booleans(), st.floats(0.5, 40), st.floats(0.5, 40))
def test_values_in_range_come_back_within_half_a_step(
    x: np.ndarray, bits: int, symmetric: bool, below: float, above: float
) -> None:
    encoding = per_tensor("x", -below, above, bits=bits, symmetric=symmetric)
    low, high, step = float(encoding.low), float(encoding.high), float(encoding.scale)
    found = fake_quantize(x, encoding)
    inside = np.clip(x, low, high)
    assert np.all(np.abs(found - inside) <= step * 0.5001 + 1e-5)
    assert np.all((found >= low - 1e-4) & (found <= high + 1e-4))
    # What is on the grid stays there, and zero is on every grid.
    np.testing.assert_array_equal(fake_quantize(found, encoding), found)
    assert fake_quantize(np.zeros((1,), np.float32), encoding)[0] == 0


@given(values, st.integers(0, 3))
def test_rows_of_a_weight_have_the_rows_of_its_encoding(x: np.ndarray, start: int) -> None:
    scale = np.array([0.1, 0.2, 0.3, 0.4])
    whole = Encoding("w", 8, symmetric=True, scale=scale, offset=np.full(4, -128.0))
    part = quantize(x[start:], whole.rows(start, 4))
    np.testing.assert_array_equal(part, quantize(x, whole)[start:])


def test_halves_round_to_even_on_the_grid_of_the_scale() -> None:
    encoding = Encoding("w", 4, symmetric=True, scale=np.array(2.0), offset=np.array(-8.0))
    x = np.array([-17.0, -3.0, -1.0, 1.0, 3.0, 5.0, 13.0, 99.0], np.float32)
    grid = quantize(x, encoding)
    assert grid.astype(np.int8).tolist() == [-8, -2, 0, 0, 2, 2, 6, 7]
    assert str(grid.dtype) == "int4"
    np.testing.assert_array_equal(dequantize(grid, encoding), grid.astype(np.float32) * 2)


def test_an_asymmetric_grid_is_unsigned() -> None:
    encoding = per_tensor("a", -1.0, 3.0, bits=16, symmetric=False)
    grid = quantize(np.array([-2.0, 0.0, 9.0], np.float32), encoding)
    assert grid.dtype == np.uint16
    assert grid.tolist() == [0, -float(encoding.offset), 65535]


def test_encodings_ruined_by_an_infinite_mask_are_refused() -> None:
    ruined = read_encodings(FIXTURES / "w8a16-inf-mask.encodings")
    with pytest.raises(BadEncodings) as caught:
        refuse_infinite_masks(ruined)
    message = str(caught.value)
    assert "w8a16-inf-mask.encodings: /model/layers.0/self_attn/" in message
    assert "-3.37e+38" in message
    assert "infinite attention mask" in message
    assert "replace -inf by -100" in message
    refuse_infinite_masks(read_encodings(FIXTURES / "w4a16.encodings"))


@pytest.mark.parametrize(
    ("mask", "refused"), [(-100.0, False), (-4000.0, False), (-10000.0, True), (-65504.0, True)]
)
def test_masks_that_leave_no_useful_step_are_refused(mask: float, refused: bool) -> None:
    masked = per_tensor("masked", mask - 20, 30, bits=16, symmetric=False)
    encodings = EncodingSet("1.0.0", "f", {"masked": masked})
    if not refused:
        refuse_infinite_masks(encodings, ["masked", "absent"])
        return
    with pytest.raises(BadEncodings, match=r"f: masked: a step of .* for attention scores"):
        refuse_infinite_masks(encodings, ["masked"])


def test_encodings_of_another_model_are_refused() -> None:
    raw = json.loads((FIXTURES / "w4a16.encodings").read_text())
    names = [entry["name"] for entry in raw["activation_encodings"] + raw["param_encodings"]]
    encodings = read_encodings(FIXTURES / "w4a16.encodings")
    refuse_foreign(encodings, names, model="model.onnx")
    with pytest.raises(BadInput) as caught:
        refuse_foreign(encodings, names[:60], model="model.onnx")
    message = str(caught.value)
    assert "254 of 314 encodings name tensors that model.onnx does not have" in message
    assert all(name in message for name in names[60:63])

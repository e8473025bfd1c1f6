"""Messages to the emulator's worker survive the trip."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from genai_runtime.htp import frames

_ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float16]).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    max_size=4,
)


def _reader(data: bytes) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)

    def read(size: int) -> bytes:
        piece = stream.read(size)
        if len(piece) != size:
            raise EOFError
        return piece

    return read


@given(_ARRAYS, st.dictionaries(st.sampled_from(["op", "graph"]), st.text(max_size=5)))
def test_round_trip(arrays: frames.Arrays, message: dict[str, str]) -> None:
    data = b"".join(frames.pack(message, arrays))
    got, back = frames.unpack(_reader(data))
    assert got == message
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
        assert back[name].shape == array.shape


def test_a_strided_array_is_sent_in_c_order() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2]
    _, back = frames.unpack(_reader(b"".join(frames.pack({}, {"a": array}))))
    np.testing.assert_array_equal(back["a"], [[0, 2], [4, 6], [8, 10]])


@pytest.mark.parametrize("cut", [1, 11, 13, -1])
def test_an_interrupted_message_is_noticed(cut: int) -> None:
    data = b"".join(frames.pack({"op": "run"}, {"a": np.zeros(4, np.uint8)}))
    with pytest.raises(EOFError):
        frames.unpack(_reader(data[:cut]))

"""What `convert` hands to `compile` for the cpu target: data files and a JSON that describes them.

A convert task turns the weights of a few layers into the form that the CPU model reads and knows
nothing of the other layers. Compile places the data files behind each other and never looks into
them, so its memory does not grow with the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genai_core.errors import BadInput
from genai_core.names import Precision

FRAGMENT_FILE = "fragment.json"
DATA_FILE = "weights.data"
ALIGNMENT = 64
"""Bytes; every tensor starts on a cache line."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Dtype = Literal["float32", "float16", "int8", "uint8"]
Form = Literal["int8", "int4", "float"]


class StoredTensor(BaseModel):
    """One tensor of a data file, row-major, little-endian."""

    model_config = _FROZEN

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    length: int


class LinearWeights(BaseModel):
    """How the weight of one `genai.Linear` is stored.

    int8: weight int8 [in, out], scale float32 [out], zero_point int8 [out] or None.
    int4: weight uint8 [out, blocks, block_size / 2], scale float32 [out * blocks], zero_point
          uint8 [out * ceil(blocks / 2)] or None (= 8).
    float: weight float32 [in, out].
    """

    model_config = _FROZEN

    form: Form
    inputs: int
    outputs: int
    weight: str
    scale: str | None = None
    zero_point: str | None = None
    block_size: int | None = None
    exact: bool
    """The integers of the source's encoding are kept; False: rounded anew."""
    wide: bool = False
    """int8 beyond +-64: u8 x s8 kernels that add pairs in 16 bits would saturate."""


class Fragment(BaseModel):
    """The tensors of one convert task, in the order of the data file."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    precision: Precision
    first: int
    last: int
    embedding: bool
    lm_head: bool
    tensors: list[StoredTensor] = Field(default_factory=list)
    linears: dict[str, LinearWeights] = Field(default_factory=dict)
    """Core-graph weight -> its stored form."""
    plain: dict[str, str] = Field(default_factory=dict)
    """Core-graph weight that is no Linear's (embedding, norms, biases) -> stored tensor."""


def read_fragment(folder: Path) -> Fragment:
    """Read a convert task's fragment.

    Raises:
        BadInput: The file is not one.
    """
    path = folder / FRAGMENT_FILE
    try:
        return Fragment.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadInput(
            f"not a fragment of a cpu model: {error}",
            where=str(path),
            remedy="run convert again with this version",
        ) from error

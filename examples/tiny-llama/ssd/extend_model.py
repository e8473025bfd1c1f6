"""Append the rows of forecast tokens to a model's embedding table.

    python extend_model.py ../model forecast.safetensors ../model-ssd

The output layer stays as it is: a forecast token is read, never written. What is left beside the
table (other weights, encodings, tokenizer) is copied. A model that is quantized with encodings
should be calibrated after this, with forecast tokens among what it reads: their rows are longer
than others', and ranges that were found without them cut them off.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import load_file


def extend(source: Path, tensor_file: Path, out: Path) -> None:
    """Write the extended model.

    Args:
        source: Folder with model.onnx, whose token ids are looked up in one table.
        tensor_file: Holds `forecast_embedding` [tokens, hidden size].
        out: A folder that is not there yet.
    """
    shutil.copytree(source, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)  # noqa: TID251 - its own
    gather = next(node for node in model.graph.node if "input_ids" in list(node.input)[1:2])
    table = next(one for one in model.graph.initializer if one.name == gather.input[0])
    values = _values(table, source)
    more = load_file(tensor_file)["forecast_embedding"].astype(values.dtype)
    table.CopyFrom(numpy_helper.from_array(np.concatenate([values, more]), table.name))
    (out / "model.onnx").write_bytes(model.SerializeToString())


def _values(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    place = {entry.key: entry.value for entry in tensor.external_data}
    if not place:
        return numpy_helper.to_array(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count, offset = int(np.prod(tensor.dims)), int(place.get("offset", 0))
    flat = np.fromfile(folder / place["location"], kind, count, offset=offset)
    return flat.reshape(tuple(tensor.dims))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "tensor_file", "out"):
        parser.add_argument(name, type=Path)
    extend(**vars(parser.parse_args()))

"""QDQ (or float) ONNX -> DLC, the vendor's exchange format, and what a DLC says.

    result = dlc.convert(model, "ar32_cl256_1_of_3", Path("out/graph.dlc"), scratch=scratch)
    result.digest      # stands for the file in keys: its bytes carry a clock
    result.listing     # inputs and outputs with dtypes and scales, as the vendor reads them

Each step runs in a fresh process. The provider writes the DLC under a name derived from the model's
path; replaying it into the vendor's own writer gives it ours. A graph of which one node does not
run on the Hexagon processor is refused, with that node's name.

The DLC does not depend on the chip: the chip enters at compile. Operators are checked against
`chips.REFERENCE` on the way.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from genai_core import chips
from genai_core.errors import BadModel, UnsupportedOperator
from genai_runtime.htp.metadata import GraphMetadata
from genai_runtime.htp.vendor import qnn
from genai_stages.backends.htp import toolrun

RECORDS = ("model", "model.params", "model.params.bin")
"""A DLC is a zip; these records are the graph and its weights. The others carry the time."""


@dataclass(frozen=True)
class DlcResult:
    """A finished conversion.

    Attributes:
        path: The DLC.
        digest: `semantic_digest` of it.
        listing: Its graph, inputs and outputs.
        seconds: Wall-clock time of both processes.
        peak_memory_bytes: The larger of theirs.
    """

    path: Path
    digest: str
    listing: GraphMetadata
    seconds: float
    peak_memory_bytes: int


def convert(
    model: Path,
    graph: str,
    out: Path,
    *,
    scratch: Path,
    float16: bool = False,
    user_name: Callable[[str], str] = str,
    timeout: float = 3600.0,
) -> DlcResult:
    """Convert one static graph.

    Args:
        model: ONNX whose dimensions are all static: QDQ with integer inputs and outputs, or float.
            External data is read from where it points to.
        graph: The graph's name inside the DLC.
        out: The DLC to write.
        scratch: Private folder; logs of the processes stay there.
        float16: Operators of a float graph are checked as float16. Float parts of a graph are
            always computed in float16; the DLC is the same.
        user_name: Name of a tensor of this model -> the name that the user knows it by.
        timeout: Seconds for each of the two processes.

    Raises:
        BadModel: A dimension is not static.
        UnsupportedOperator: A node would not run on the Hexagon processor.
        ToolFailed: The vendor's library failed otherwise, or died.
        NotRunnableHere: It is not installed here.
    """
    qnn.libraries()
    _require_static(model)
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="dlc-", dir=scratch)).resolve()
    request = {
        "model": str(model.absolute()),
        "out": str(folder),
        "soc_model": chips.REFERENCE.soc_model,
        "float16": float16,
    }
    package = "genai_stages.backends.htp"
    try:
        exported = toolrun.run(f"{package}.export_child", request, scratch=scratch, timeout=timeout)
        renamed = toolrun.run(
            f"{package}.rename_child",
            {"dlc": exported.reply["dlc"], "out": str(out.resolve()), "graph": graph},
            scratch=scratch,
            timeout=timeout,
        )
    except UnsupportedOperator as error:
        raise _explained(error, model, user_name) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return DlcResult(
        out,
        semantic_digest(out),
        GraphMetadata.model_validate(renamed.reply["listing"]),
        exported.seconds + renamed.seconds,
        max(exported.peak_memory_bytes, renamed.peak_memory_bytes),
    )


def listing(dlc: Path, *, scratch: Path, timeout: float = 600.0) -> GraphMetadata:
    """Graph name, inputs and outputs of a DLC, as the vendor's library reads them.

    Raises:
        ToolFailed: It is not a DLC.
    """
    reply = toolrun.run(
        "genai_stages.backends.htp.rename_child",
        {"dlc": str(dlc.resolve())},
        scratch=scratch,
        timeout=timeout,
    ).reply
    return GraphMetadata.model_validate(reply["listing"])


def semantic_digest(dlc: Path) -> str:
    """SHA-256 (64 hex) over the graph and weights of a DLC: no clock and no path enters.

    Raises:
        BadModel: It is not a DLC.
    """
    total = hashlib.sha256()
    try:
        with zipfile.ZipFile(dlc) as archive, dlc.open("rb") as file:
            for record in RECORDS:
                info = archive.getinfo(record)
                # Read past zipfile: the writer leaves the checksums at 0.
                file.seek(info.header_offset)
                header = file.read(30)
                name_length, extra_length = struct.unpack("<HH", header[26:30])
                file.seek(name_length + extra_length, 1)
                total.update(f"{record}\0{info.file_size}\0".encode())
                left = info.file_size
                while left:
                    piece = file.read(min(left, 1 << 20))
                    if not piece:
                        raise BadModel("the file ends early", where=dlc.name)
                    total.update(piece)
                    left -= len(piece)
    except (zipfile.BadZipFile, KeyError, struct.error) as error:
        raise BadModel(f"not a DLC ({error})", where=dlc.name) from error
    return total.hexdigest()


def _require_static(model: Path) -> None:
    graph = onnx.load(str(model), load_external_data=False).graph  # noqa: TID251 - structure only
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                raise BadModel(
                    f"the dimension {dimension.dim_param or '?'} is not static",
                    where=f"{model.name}: {value.name}",
                    remedy="fix AR and CL before converting",
                )


def _explained(
    error: UnsupportedOperator, model: Path, user_name: Callable[[str], str]
) -> UnsupportedOperator:
    """The child's bare report with the names that a user can look up."""
    count, _, kind = error.message.partition("|")
    graph = onnx.load(str(model), load_external_data=False).graph  # noqa: TID251 - structure only
    node = next((n for n in graph.node if n.name == error.where), None)
    if node is not None and kind in ("QuantizeLinear", "DequantizeLinear"):
        # A weight or constant is quantized beside the operator that cannot take it in that form.
        readers = [n for n in graph.node if node.output[0] in n.input]
        node = readers[0] if readers else node
    name = error.where if node is None else node.output[0]
    known = user_name(_without_suffix(name))
    where = f"{node.op_type if node is not None else kind} {known}"
    more = f" ({count} nodes in all)" if count != "1" else ""
    remedy = "replace it by operators that the processor has, or check its encodings"
    if node is not None and node.op_type in ("MatMul", "Gemm", "Conv"):
        remedy = "check its encodings: with 16-bit input it cannot write 8 bit directly"
        makers = {n.output[0]: n.op_type for n in graph.node}
        if makers.get(node.input[0], "") not in ("", "DequantizeLinear"):
            source = user_name(_without_suffix(node.input[0]))
            remedy = f"give its input {source} an encoding, or leave its weights in float"
    return UnsupportedOperator(
        f"the operator cannot run on the Hexagon processor in this form{more}",
        where=where,
        remedy=remedy,
    )


def _without_suffix(tensor: str) -> str:
    for suffix in ("_dq", "_q", "_f"):
        tensor = tensor.removesuffix(suffix)
    return tensor

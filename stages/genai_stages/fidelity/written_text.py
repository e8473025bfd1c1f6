"""Text that a model itself writes, for a measure of fidelity where no text is given.

A model's own samples are what it predicts best, so its loss on them is low and any departure from
the model shows. Tokens are drawn at temperature 1 from the float model, with a fixed seed. The
float model is the cpu target's own, built into a scratch folder. All pieces are written side by
side, so that the weights, which lie mapped from their file, are read once for each position and
not once for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.facts import ModelFacts
from genai_core.names import Precision
from genai_core.operations import ConvertCpuConfig
from genai_runtime.evaluate import losses
from genai_runtime.rope import cos_sin
from genai_runtime.sampling import Sampling, choose
from genai_stages.backends.cpu.attention_nodes import table_inputs
from genai_stages.backends.cpu.cpu_model import MODEL_FILE, build_model, write_model
from genai_stages.backends.cpu.join import join_fragments
from genai_stages.backends.cpu.model_graph import MODEL_DATA_FILE
from genai_stages.backends.cpu.quantize import convert_group
from genai_stages.graph.core_graph import read_core


@dataclass(frozen=True)
class WrittenText:
    """What the float model wrote.

    Attributes:
        tokens: [pieces, length].
        nats: Its own loss on them, a token, known from the logits that they were drawn from.
    """

    tokens: NDArray[np.int64]
    nats: float


def write_pieces(
    core: Path, scratch: Path, *, pieces: int, length: int, threads: int = 1, seed: int = 0
) -> WrittenText:
    """Sample token ids [pieces, length]; the first token of each piece is drawn uniformly.

    The whole float model is on disk once more, and mapped: for a model of many gigabytes, giving
    tokens is better.
    """
    graph, facts = read_core(core)
    model = _float_model(core, graph, facts, scratch=scratch, batch=pieces)
    writer = _Writer(model, facts, pieces=pieces, length=length, threads=threads)
    random = np.random.default_rng(seed)
    written = np.zeros((pieces, length), dtype=np.int64)
    written[:, 0] = random.integers(facts.vocab_size, size=pieces)
    total = 0.0
    for position in range(length - 1):
        logits = writer.forward(written[:, position], position)
        for piece, row in enumerate(logits):
            written[piece, position + 1] = choose(row, Sampling(temperature=1.0), random)
        total += float(losses(logits, written[:, position + 1]).sum())
    return WrittenText(written, total / (pieces * (length - 1)))


class _Writer:
    """The float model on some sequences of one length; a cache for each."""

    def __init__(
        self, model: Path, facts: ModelFacts, *, pieces: int, length: int, threads: int
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Packing would hold a second copy of every weight in memory of our own.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session: Any = ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.binding: Any = self.session.io_binding()
        self.pieces = pieces
        inputs = {value.name: value for value in self.session.get_inputs()}
        for name, table in facts.rope.items():
            made = cos_sin(np.arange(length), table)
            for wanted, values in zip(table_inputs(name), made, strict=True):
                if wanted in inputs:
                    self.binding.bind_cpu_input(wanted, np.ascontiguousarray(values))
        self.binding.bind_output("logits", "cpu")
        for value in self.session.get_outputs()[1:]:
            past = value.name.replace("present.", "past_key_values.", 1)
            _, heads, _, width = inputs[past].shape
            # Past and present are one buffer: the kernel writes new slots in place.
            cache = ort.OrtValue.ortvalue_from_shape_and_type(
                [pieces, heads, length, width], np.float32, "cpu"
            )
            self.binding.bind_ortvalue_input(past, cache)
            self.binding.bind_ortvalue_output(value.name, cache)

    def forward(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Logits [pieces, V] behind one token of each piece."""
        binding = self.binding
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens[:, None]))
        binding.bind_cpu_input("seqlens_k", np.full(self.pieces, position, dtype=np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([position + 1], dtype=np.int32))
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()[:, 0]
        return logits


def _float_model(
    core: Path, graph: ir.Model, facts: ModelFacts, *, scratch: Path, batch: int
) -> Path:
    """The cpu target's float model of a core graph."""
    fragment = scratch / "fragment"
    fragment.mkdir(parents=True)
    config = ConvertCpuConfig(
        precision=Precision.FLOAT, first=0, last=facts.layers, embedding=True, lm_head=True
    )
    convert_group(graph, facts, None, config=config, out=fragment)
    joined = join_fragments([fragment], Precision.FLOAT, scratch / MODEL_DATA_FILE)
    built = build_model(
        graph,
        facts,
        precision=Precision.FLOAT,
        tensors=joined.tensors,
        linears=joined.linears,
        plain=joined.plain,
        grids={},
        batch=batch,
    )
    write_model(built, scratch / MODEL_FILE)
    return scratch / MODEL_FILE

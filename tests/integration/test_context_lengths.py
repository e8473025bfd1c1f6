"""Several context lengths in one container: the smallest graph that fits, the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from genai_cli.testing import Program
from genai_runtime.container import container
from genai_runtime.container.backend import open_session
from genai_runtime.htp import emulation
from genai_runtime.htp.arithmetic import Integers
from genai_runtime.htp.client import Emulator
from genai_runtime.htp.executor import HtpSession
from genai_runtime.htp.vendor import qnn
from genai_runtime.session import Session
from genai_stages.testing_sources import write_source

pytestmark = pytest.mark.qnn

VOCAB = 256
LENGTHS = [512, 1024, 4096]
RANDOM = np.random.default_rng(5)
PROMPTS = {length: RANDOM.integers(0, VOCAB, length) for length in (300, 900)}


class Recording:
    """The emulator, with a note of which graphs were run."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.calls: list[str] = []

    def run(self, graph: str, inputs: Mapping[str, Integers]) -> dict[str, Integers]:
        self.calls.append(graph)
        return self.emulator.run(graph, inputs)

    def close(self) -> None:
        self.emulator.close()


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, ranges calibrated, for sm8750 and cpu."""
    if not qnn.available():
        pytest.skip("needs the vendor's wheel: Linux x86-64, glibc 2.35")
    folder = tmp_path_factory.mktemp("lengths")
    write_source(folder / "model", vocab=VOCAB, heads=2, kv_heads=1)
    for name, shape in (("calibration", (8, 64)), ("tokens", (2, 16))):
        np.save(folder / f"model/{name}.npy", RANDOM.integers(0, VOCAB, shape, np.uint16))
    spec = {
        "model": {"source": "./model"},
        "targets": ["sm8750", "cpu"],
        "graphs": {"autoRegression": [1, 128], "contextLengths": LENGTHS},
        "splits": {"count": 1},
        "quantization": {
            "gaps": "Calibrate",
            "calibration": "calibration.npy",
            "fidelity": {"tokens": "tokens.npy", "budgetNats": 0.1},
        },
    }
    document = {"apiVersion": "genai-operator.dev/v1alpha1", "kind": "GenAIBuild"}
    (folder / "build.yaml").write_text(
        yaml.safe_dump({**document, "metadata": {"name": "lengths"}, "spec": spec})
    )
    program = Program(folder)
    program.ok("build", "-f", "build.yaml", "--store", "store", "--output", "containers")
    return folder / "containers/lengths"


@pytest.fixture(scope="module")
def emulator(containers: Path) -> Iterator[Recording]:
    folder = containers / "sm8750/emulation"
    facts = emulation.load(folder)
    graphs = [graph.name for part in facts.parts for graph in part.binary.graphs]
    models = {name: folder / f"{name}.onnx" for name in graphs}
    with Emulator(models, soc_model=facts.soc_model) as started:
        yield Recording(started)


def greedy(session: Session, prompt: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The next tokens, and the logits that chose them."""
    rows = [session.forward(prompt)[-1]]
    while len(rows) < count:
        rows.append(session.forward(np.array([rows[-1].argmax()]))[-1])
    return [int(row.argmax()) for row in rows], np.array(rows)


@pytest.mark.parametrize(("length", "fits"), [(300, 512), (900, 1024)])
def test_the_smallest_graph_gives_the_longest_graph_s_tokens(
    containers: Path, emulator: Recording, tmp_path: Path, *, length: int, fits: int
) -> None:
    folder = containers / "sm8750/emulation"
    everything = emulation.load(folder)
    assert len(everything.parts[0].binary.graphs) == 2 * len(LENGTHS)
    emulator.calls.clear()
    chosen, logits = greedy(HtpSession(folder, runner=emulator), PROMPTS[length], 4)
    passes = -(-length // 128)
    assert emulator.calls == [
        *(f"prompt_ar128_cl{fits}_1_of_1" for _ in range(passes)),
        *(f"token_ar1_cl{fits}_1_of_1" for _ in range(3)),
    ]
    # The same binary without its shorter graphs.
    (part,) = everything.parts
    longest = tuple(g for g in part.binary.graphs if emulation.graph_key(g.name).cl == LENGTHS[-1])
    alone = part.model_copy(update={"binary": part.binary.model_copy(update={"graphs": longest})})
    (tmp_path / emulation.METADATA).write_text(
        everything.model_copy(update={"parts": (alone,)}).model_dump_json()
    )
    emulator.calls.clear()
    same, reference = greedy(HtpSession(tmp_path, runner=emulator), PROMPTS[length], 4)
    assert {emulation.graph_key(name).cl for name in emulator.calls} == {LENGTHS[-1]}
    assert chosen == same
    assert len(set(chosen)) > 1
    np.testing.assert_array_equal(logits, reference)


def test_the_cpu_container_is_one_model_for_every_length(containers: Path) -> None:
    manifest = json.loads((containers / "cpu/manifest.json").read_bytes())
    assert [name for name in manifest["files"] if name.endswith(".onnx")] == ["model.onnx"]
    opened = container.load(containers / "cpu")
    for length, fits in ((300, 512), (900, 1024)):
        short, whole = (open_session(opened, context_length=cl) for cl in (fits, LENGTHS[-1]))
        assert (short.context_length, whole.context_length) == (fits, LENGTHS[-1])
        np.testing.assert_array_equal(
            greedy(short, PROMPTS[length], 4)[1], greedy(whole, PROMPTS[length], 4)[1]
        )
        short.close()
        whole.close()

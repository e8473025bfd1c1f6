"""A model of its own for AR 1 on Snapdragon, from the spec to what the twin computes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from genai_cli.build.local_build import make_containers
from genai_core.errors import InvalidSpec
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import GenAIBuild
from genai_core.kinds.documents.reading import read_model, with_local_source
from genai_runtime.htp.executor import HtpSession
from genai_runtime.htp.vendor import qnn
from genai_stages.fidelity.source_reference import SourceReference

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
SPEC: dict[str, Any] = {
    "model": {"source": "model"},
    "targets": ["sm8750"],
    "graphs": {"autoRegression": [1, 8], "contextLengths": [64]},
    "splits": {"count": 1},
    "quantization": {
        "gaps": "Calibrate", "calibration": "calibration.npy",
        "fidelity": {"tokens": "eval.npy", "budgetNats": 0.05},
    },
}  # fmt: skip


pytestmark = [
    pytest.mark.qnn,
    pytest.mark.skipif(
        bool(qnn.why_unavailable()),
        reason=f"NO SNAPDRAGON CONTAINER WAS RUN: {qnn.why_unavailable()}",
    ),
]


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, a copy of it, and a child whose weights are others."""
    root = tmp_path_factory.mktemp("children")
    for name in ("model", "same", "other"):
        (root / name).mkdir()
        for file in ("model.onnx", "config.json"):
            shutil.copy(SOURCE / file, root / name / file)
    random = np.random.default_rng(0)
    vocab = json.loads((SOURCE / "config.json").read_bytes())["vocab_size"]
    np.save(root / "model" / "calibration.npy", random.integers(0, vocab, (8, 32)))
    np.save(root / "model" / "eval.npy", random.integers(0, vocab, (2, 24)))
    changed = onnx.load(root / "other" / "model.onnx")  # noqa: TID251 - half a megabyte
    for tensor in changed.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            noise = random.choice([0.75, 1.25], values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values * noise, tensor.name))
    onnx.save(changed, root / "other" / "model.onnx")
    return root


@dataclass(frozen=True)
class Built:
    """A container, and what was made for it."""

    folder: Path
    run: int
    report: Mapping[str, Any]
    core: Path
    """What ingest made of the child."""

    def digests(self) -> list[str]:
        """Digests of the binaries."""
        return [file_digest(path) for path in sorted(self.folder.glob("part_*.bin"))]


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(root: Path, name: str, *, targets: str = "sm8750", **spec: Any) -> Built:
    """Build as `genai build` does.

    Raises:
        GenAIError: What it ends with.
    """
    document = {
        "apiVersion": API_VERSION,
        "kind": "GenAIBuild",
        "metadata": {"name": name},
        "spec": SPEC | {"targets": [targets]} | spec,
    }
    asked = with_local_source(read_model(GenAIBuild, document), root)
    made = make_containers(
        asked, store=str(root / "store"), read_from=(), output=root / "out", jobs=2
    )
    made.raise_failure()
    folder = made.containers[targets].path
    ingested = max((root / "store").glob("*/ingest_*"), key=lambda path: path.stat().st_mtime)
    report = json.loads((folder / "report.json").read_bytes())
    return Built(folder, made.result.run, report, ingested)


@pytest.fixture(scope="module")
def plain(root: Path) -> Built:
    """Without a child."""
    return build(root, "plain")


@pytest.fixture(scope="module")
def attached(root: Path, plain: Built) -> Built:
    """AR 1 from other weights, with a compile option of its own."""
    del plain  # its tasks stand
    options = {"options": {"graphs.vtcm_size_in_mb": "4"}}
    child = {"arn": 1, "source": "other", "name": "decode", "compilation": options}
    return build(root, "attached", children=[child])


def logits(built: Built, ar: int, tokens: NDArray[Any]) -> NDArray[np.floating]:
    """What the twin's graphs of one AR compute."""
    session = HtpSession(built.folder / "emulation", ars=(ar,))
    try:
        return session.prefill(tokens)
    finally:
        session.close()


def source_logits(core: Path, scratch: Path, tokens: NDArray[Any]) -> NDArray[np.floating]:
    (found,) = SourceReference(core, scratch).logits([tokens])
    return found


def decibels(got: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    noise = float(np.square(got - wanted).mean())
    return 10 * float(np.log10(float(np.square(wanted).mean()) / noise))


class TestOtherWeights:
    def test_graphs_of_its_ar_compute_the_child_and_the_others_the_model(
        self, plain: Built, attached: Built, tmp_path: Path
    ) -> None:
        tokens = np.arange(3, 19)
        child = source_logits(attached.core, tmp_path / "child", tokens)
        model = source_logits(plain.core, tmp_path / "model", tokens)
        assert decibels(child, model) < 15, "the two differ, else this shows nothing"
        assert decibels(logits(attached, 1, tokens), child) > 25
        assert decibels(logits(attached, 8, tokens), model) > 25
        assert decibels(logits(attached, 1, tokens), model) < 15

    def test_the_child_alone_is_made_and_fidelity_holds_it_against_its_own_source(
        self, attached: Built
    ) -> None:
        # ingest, arcl, transform and convert of the child; compile, fidelity, package
        assert attached.run == 7
        (own,) = attached.report["fidelity"]["children"].values()
        assert own["natsPerToken"] == pytest.approx(own["baselineNats"], abs=0.05)
        assert attached.report["fidelity"]["within"] is True
        assert own["yardstick"] == "the source itself"

    def test_compile_notes_the_options_of_each_ar(self, attached: Built) -> None:
        compiled = attached.report["stages"]["compile/sm8750/1_of_1"]
        assert compiled["optionsOfAr"] == {"1": {"graphs.vtcm_size_in_mb": "4"}, "8": {}}

    def test_the_manifest_says_that_an_ar_has_a_model_of_its_own(self, attached: Built) -> None:
        manifest = json.loads((attached.folder / "manifest.json").read_bytes())
        assert manifest["model"]["children"].keys() == {"1"}
        assert manifest["model"]["children"]["1"].keys() == {"core", "weights"}

    def test_the_cpu_target_is_refused_once_both_are_read(
        self, root: Path, attached: Built
    ) -> None:
        del attached  # both are read
        with pytest.raises(InvalidSpec, match="the weights of child decode are not the model's"):
            build(
                root, "cpu", targets="cpu",
                children=[{"arn": 1, "source": "other", "name": "decode"}],
            )  # fmt: skip
        assert not list((root / "store").glob("*/compile_*/model.onnx"))


class TestEqualWeights:
    def test_binaries_are_those_without_a_child(self, root: Path, plain: Built) -> None:
        child = {"arn": 1, "source": "same"}
        built = build(root, "equal", children=[child])
        assert built.digests() == plain.digests()

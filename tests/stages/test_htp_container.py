"""A small model through every stage for Snapdragon, and its container run in the emulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from htp_stages import CHIP, GRAPH, SPLITS, beside_weights, example_assets, fresh

from genai_core.names import Backend, Gaps
from genai_core.operations import (
    ArclConfig,
    CompileHtpConfig,
    ConvertHtpConfig,
    FidelityConfig,
    PackageConfig,
    TransformConfig,
)
from genai_runtime.container import container, inspection
from genai_runtime.container.backend import open_session
from genai_runtime.evaluate import evaluate
from genai_runtime.golden import replay
from genai_runtime.htp.vendor import qnn
from genai_stages.measured import note_measurements
from genai_stages.operations import (
    arcl,
    compile_htp,
    convert_htp,
    fidelity,
    package,
    transform,
)
from genai_stages.quantize.segments import SegmentedModel
from genai_stages.testing import keep_expanded, random_core_model

pytestmark = [
    pytest.mark.qnn,
    pytest.mark.skipif(
        bool(qnn.why_unavailable()),
        reason=f"NO SNAPDRAGON CONTAINER WAS RUN: {qnn.why_unavailable()}",
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every stage; calibrated, since a random model has no encodings."""
    root = tmp_path_factory.mktemp("htp")
    core = root / "core"
    random_core_model(core, vocab=2048, hidden=32, intermediate=48)
    keep_expanded(core)
    random = np.random.default_rng(0)
    for name in ("calibration", "tokens", "source"):
        (root / name).mkdir()
    np.save(root / "calibration" / "tokens.npy", random.integers(0, 2048, (8, 32)))
    np.save(root / "tokens" / "tokens.npy", random.integers(0, 2048, (2, 20)))
    example_assets(root / "source")
    static = beside_weights(core, root / "static")
    arcl.run({"model": core}, ArclConfig(graph=GRAPH), static, fresh(root))
    for split in SPLITS:
        part = beside_weights(core, root / f"transform_{split.index}")
        transform.run(
            {"model": static}, TransformConfig(graph=GRAPH, split=split), part, fresh(root)
        )
        converted = root / f"convert_{split.index}"
        converted.mkdir()
        convert_htp.run(
            {"model": part, "core": core, "calibration": root / "calibration"},
            ConvertHtpConfig(graph=GRAPH, split=split, gaps=Gaps.CALIBRATE),
            converted,
            fresh(root),
        )
        compiled = root / f"compile_{split.index}"
        compiled.mkdir()
        result = compile_htp.run(
            {"ar8_cl32": converted},
            CompileHtpConfig(chip=CHIP, split=split, graphs=(GRAPH,), emulation=True),
            compiled,
            fresh(root),
        )
        # As the runner does it behind every operation.
        task = f"compile/{split.index}"
        note_measurements(task, {}, compiled, result=result, cost={"seconds": 1})
    return root


def parts(built: Path) -> dict[str, Path]:
    return {f"part_{split.index}": built / f"compile_{split.index}" for split in SPLITS}


def test_the_compiled_splits_keep_the_model_s_loss(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "fidelity"
    out.mkdir()
    result = fidelity.run(
        {**parts(built), "core": built / "core", "tokens": built / "tokens"},
        FidelityConfig(backend=Backend.HTP, budget_nats=0.1, pieces=2, length=20),
        out,
        fresh(tmp_path),
    )
    assert result.facts["verified"] == "Emulator"
    assert result.facts["tokens"] == 2 * 19
    assert result.facts["within"] is True
    assert abs(result.facts["natsPerToken"] - result.facts["floatNats"]) < 0.1


def test_the_container_runs_in_the_emulator_and_repeats_its_golden_answer(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "container"
    out.mkdir()
    result = package.run(
        {**parts(built), "core": built / "core", "source": built / "source"},
        PackageConfig(
            target="sm8750",
            backend=Backend.HTP,
            chip=CHIP,
            graphs=(GRAPH,),
            splits=SPLITS,
            context_length=32,
            golden_prompts=("def f(x):",),
            golden_max_tokens=3,
        ),
        out,
        fresh(tmp_path),
    )
    assert result.facts["verified"] == "Emulator"
    assert not result.warnings
    opened = container.load(out)
    opened.verify()
    assert not any(name.startswith("emulation/") for name in opened.manifest.files)
    assert [graph.name for graph in opened.manifest.graphs] == [
        "token_ar8_cl32_1_of_2",
        "token_ar8_cl32_2_of_2",
    ]
    tokens = np.load(built / "tokens" / "tokens.npy")[0]
    session = open_session(opened)
    try:
        golden = opened.golden()
        assert golden is not None
        assert replay(session, golden).passed
        session.reset()
        got = session.forward(tokens)
        loss = evaluate(session, tokens[None]).nats_per_token
    finally:
        session.close()
    (expected,) = SegmentedModel(built / "core", tmp_path / "float").logits([tokens])
    noise = np.square(got - expected).mean() / np.square(expected).mean()
    assert 10 * np.log10(1 / noise) > 25
    assert loss == pytest.approx(9, abs=3)
    facts = inspection.describe(out)
    json.dumps(facts)
    assert facts["runsBy"] == "emulator"
    assert set(facts["report"]["stages"]) == {"compile/1", "compile/2", "package"}
    logits = facts["modelFiles"]["part_2_of_2.bin"]["token_ar8_cl32_2_of_2"]["outputs"]["logits"]
    assert logits["shape"] == [1, 8, 2048]
    assert logits["scale"] > 0

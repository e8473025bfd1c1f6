"""Adapters as part of Snapdragon graphs, with binaries of their own, run in the emulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from htp_stages import CHIP, GRAPH, beside_weights, fresh
from lora_stages import LARGE, Stages, decibels, needs_qnn
from lora_stages import merged as merged_weights
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_core.facts import AdapterRanges
from genai_core.names import Backend, Gaps
from genai_core.operations import (
    ArclConfig,
    CompileHtpConfig,
    ConvertHtpConfig,
    LoraGraphConfig,
    LoraRangesConfig,
    PackageConfig,
    SplitConfig,
    TransformConfig,
    UseCaseConfig,
    WornConfig,
)
from genai_runtime.container import container
from genai_runtime.container.backend import open_executor, open_session
from genai_runtime.cpu.adapter_files import read_adapter
from genai_runtime.executor.rows import AdapterUse, Logits
from genai_stages.aimet.model import EncodingSet, per_tensor
from genai_stages.lora.branch_inputs import read_inputs, read_ranges
from genai_stages.lora.branch_ranges import Combination
from genai_stages.lora.laid_in import lay_in
from genai_stages.lora.reached import read_reached, widened
from genai_stages.operations import (
    arcl,
    compile_htp,
    convert_htp,
    lora_graph,
    lora_ranges,
    package,
    transform,
)
from genai_stages.quantize.calibrate import calibrate
from genai_stages.stage import StageResult

WHOLE = SplitConfig(index=1, count=1, first=0, last=2, embedding=True, lm_head=True)
PART = "ar8_cl32_1_of_1.onnx"
CASES: Mapping[str, Sequence[tuple[str, str]]] = {
    "large": [("large", "1.0")],
    "mild": [("large", "0.25")],
    "both": [("small", "0.5"), ("large", "0.25")],
}
"""What is worn; the first two have binaries of their own, in the container's order."""


class Merged:
    """Folders of every stage, up to convert."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.graph = stages.folder("every")
        lora_graph.run(
            {"core": stages.core}, LoraGraphConfig(every=True), self.graph, fresh(stages.root)
        )
        self.plain = self.static("plain", {})
        self.branched = self.static("branched", {"adapters": self.graph})
        self.ranges: dict[str, Path] = {}

    def static(self, name: str, adapters: Mapping[str, Path]) -> Path:
        """arcl and transform, the weights beside."""
        stages = self.stages
        folders = [stages.root / f"{name}_{stage}" for stage in ("arcl", "transform")]
        for folder in folders:
            beside_weights(stages.core, folder)
        config = ArclConfig(graph=GRAPH)
        arcl.run({"model": stages.core, **adapters}, config, folders[0], fresh(stages.root))
        split = TransformConfig(graph=GRAPH, split=WHOLE)
        transform.run({"model": folders[0]}, split, folders[1], fresh(stages.root))
        return folders[1]

    def adapters(self, case: str) -> dict[str, Path]:
        names = [name for name, _ in CASES[case]]
        return {f"adapter_{at}": self.stages.imported[name] for at, name in enumerate(names)}

    def converted(self, case: str | None, *, reached: bool = False) -> Path:
        """The base's part, or that of a use case."""
        stages = self.stages
        given: dict[str, Path] = {"core": stages.core, "calibration": stages.text}
        alphas: tuple[str, ...] = ()
        if case is not None:
            alphas = tuple(alpha for _, alpha in CASES[case])
            self.ranges[case] = stages.folder(f"ranges_{case}")
            given |= {"adapters": self.graph, **self.adapters(case)}
            config = LoraRangesConfig(
                together=(tuple(enumerate(alphas)),), alone=False, reached=reached
            )
            lora_ranges.run(given, config, self.ranges[case], fresh(stages.root))
            given["ranges"] = self.ranges[case]
        out = stages.folder(f"convert_{case}")
        convert_htp.run(
            {"model": self.plain if case is None else self.branched, **given},
            ConvertHtpConfig(graph=GRAPH, split=WHOLE, gaps=Gaps.CALIBRATE, worn=alphas),
            out,
            fresh(stages.root),
        )
        return out


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("merged"))


@pytest.fixture(scope="module")
def merged(stages: Stages) -> Merged:
    return Merged(stages)


def worn(merged: Merged, case: str) -> Combination:
    paths = [folder / "adapter.safetensors" for folder in merged.adapters(case).values()]
    return Combination([read_adapter(path) for path in paths], [float(a) for _, a in CASES[case]])


def ends(model: ir.Model) -> set[str]:
    return {value.name or "" for value in (*model.graph.inputs, *model.graph.outputs)}


def test_lora_graph_needs_no_adapter_when_every_linear_has_a_branch(merged: Merged) -> None:
    found = read_inputs(merged.graph)
    assert found.rank == 1
    assert len(found.branches) == 2 * 7 + 1, "seven linears a layer, and the head"


def test_lay_in_leaves_the_base_s_inputs_and_a_branch_where_it_is_used(merged: Merged) -> None:
    model = ir.load(merged.branched / PART)
    inputs = read_inputs(merged.graph)
    combination = worn(merged, "both")
    weights = lay_in(model.graph, inputs, combination)
    assert ends(model) == ends(ir.load(merged.plain / PART))
    assert len(weights) == 2 * 2 * len(LARGE), "A and B of what either touches"
    named = {one.a: one for one in inputs.branches} | {one.b: one for one in inputs.branches}
    for name, weight in weights.items():
        pair = combination.at(named[name].linear)
        assert pair is not None
        wanted = pair[0] if named[name].a == name else pair[1]
        np.testing.assert_array_equal(weight, wanted.T)
    computed = {value.name or "" for node in model.graph for value in node.outputs}
    left = {one.linear for one in inputs.branches if one.up in computed}
    assert left == {one.linear for one in inputs.branches if combination.at(one.linear)}


def test_lay_in_gives_the_base_back_when_nothing_is_worn(merged: Merged) -> None:
    model, plain = ir.load(merged.branched / PART), ir.load(merged.plain / PART)
    assert lay_in(model.graph, read_inputs(merged.graph), Combination([], [])) == {}

    def nodes(graph: ir.Graph) -> set[tuple[Any, ...]]:
        return {
            (node.op_type, *(one.name if one else "" for one in (*node.inputs, *node.outputs)))
            for node in graph
        }

    assert nodes(model.graph) == nodes(plain.graph)


def test_widened_keeps_what_holds_and_bits_of_what_does_not() -> None:
    given = EncodingSet(
        "1.0.0", "a.encodings",
        {
            "holds": per_tensor("holds", -1.0, 2.0, bits=16, symmetric=False),
            "grows": per_tensor("grows", -1.0, 2.0, bits=8, symmetric=False),
            "even": per_tensor("even", -1.0, 1.0, bits=16, symmetric=True),
        },
    )  # fmt: skip
    spans = {"holds": (-0.5, 1.9), "grows": (-3.0, 1.0), "even": (0.0, 4.0), "other": (-9.0, 9.0)}
    found = widened(given, spans)
    assert set(found) == set(given)
    assert found["holds"] is given["holds"]
    assert (found["grows"].bits, found["even"].symmetric) == (8, True)
    assert float(found["grows"].low) == pytest.approx(-3.0, abs=0.02)
    assert float(found["grows"].high) == pytest.approx(2.0, abs=0.02)
    assert float(found["even"].high) == pytest.approx(4.0, abs=1e-3)


def measured(merged: Merged, to: Path, adapters: Sequence[Path], *, alone: bool) -> AdapterRanges:
    """Ranges of two adapters, worn together."""
    given = {"core": merged.stages.core, "calibration": merged.stages.text,
             "adapters": merged.graph}  # fmt: skip
    given |= {f"adapter_{at}": path for at, path in enumerate(adapters)}
    to.mkdir()
    config = LoraRangesConfig(together=(((0, "0.5"), (1, "-0.25")),), alone=alone)
    lora_ranges.run(given, config, to, fresh(merged.stages.root))
    return read_ranges(to)


def test_ranges_are_the_adapters_own_when_binaries_are_and_all_say_them(
    stages: Stages, merged: Merged, tmp_path: Path
) -> None:
    """Shared graphs are held to what matrices bound: later adapters may come without any."""
    own = {"small": (3.0, 5.0), "large": (1.0, 20.0)}
    linears = {name: set(read_adapter(path / "adapter.safetensors").branches)
               for name, path in stages.imported.items()}  # fmt: skip
    said = {"small": linears["small"], "large": set(sorted(linears["large"])[1:])}
    folders = []
    for name, path in stages.imported.items():
        folders.append(Path(shutil.copytree(path, tmp_path / name)))
        widths = dict.fromkeys(said[name], own[name])
        (folders[-1] / "encoded.json").write_text(json.dumps(widths))
    plain = list(stages.imported.values())
    bounds = measured(merged, tmp_path / "bounds", plain, alone=False).widest
    found = measured(merged, tmp_path / "own", folders, alone=False).widest
    seen = 0
    for branch in read_inputs(merged.graph).branches:
        touching = [name for name in own if branch.linear in linears[name]]
        if not touching:
            continue
        down = max(own[name][0] for name in touching)
        up = sum({"small": 0.5, "large": 0.25}[name] * own[name][1] for name in touching)
        if all(branch.linear in said[name] for name in touching):
            seen += 1
            assert down <= found[branch.down] <= down * 1.4143
            assert up <= found[branch.up] <= up * 1.4143
        else:
            assert found[branch.down] == bounds[branch.down]
            assert found[branch.up] == bounds[branch.up]
    assert seen == len(linears["large"]) - 1
    shared = [measured(merged, tmp_path / f"shared_{at}", given, alone=True)
              for at, given in enumerate((plain, folders))]  # fmt: skip
    assert shared[0] == shared[1]


def grids(folder: Path) -> dict[str, float]:
    """Scale of each output, of a converted part."""
    graph = onnx.load(str(folder / PART), load_external_data=False).graph  # noqa: TID251
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer
                 if one.data_location != onnx.TensorProto.EXTERNAL}  # fmt: skip
    makers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    return {
        one.name: float(constants[makers[one.name].input[1]])
        for one in graph.output
        if one.name in makers
    }


@dataclass(frozen=True)
class Built:
    """The container, what its package said, and what convert made of the base and each case."""

    opened: container.Container
    result: StageResult
    converted: Mapping[str | None, Path]


@pytest.fixture(scope="module")
def built(stages: Stages, merged: Merged) -> Built:
    converted: dict[str | None, Path] = {
        None: merged.converted(None),
        "large": merged.converted("large", reached=True),
        "mild": merged.converted("mild"),
    }
    parts = {}
    for name, folder in converted.items():
        compiled = stages.folder(f"compile_{name}")
        compile_htp.run(
            {"ar8_cl32": folder},
            CompileHtpConfig(chip=CHIP, split=WHOLE, graphs=(GRAPH,), emulation=True),
            compiled,
            fresh(stages.root),
        )
        number = "" if name is None else f"case_{list(CASES).index(name)}_"
        parts[f"{number}part_1"] = compiled
    out = stages.folder("container")
    result = package.run(
        {
            **parts, "core": stages.core, "source": stages.source,
            "adapter_0": stages.imported["large"],
        },
        PackageConfig(
            target="sm8750",
            backend=Backend.HTP,
            chip=CHIP,
            graphs=(GRAPH,),
            splits=(WHOLE,),
            context_length=32,
            golden_prompts=("def f(x):",),
            golden_max_tokens=3,
            adapters=("large",),
            use_cases=(
                UseCaseConfig(name="mild", adapters=(WornConfig(name="large", alpha="0.25"),)),
            ),
            merged="All",
        ),
        out,
        fresh(stages.root),
    )  # fmt: skip
    return Built(container.load(out), result, converted)


class TestContainer:
    """What was built, run by the emulator."""

    pytestmark = needs_qnn

    def logits(self, built: Built, tokens: NDArray[np.int64], **alphas: float) -> Logits:
        session = open_session(built.opened, worn=[AdapterUse(n, a) for n, a in alphas.items()])
        try:
            return session.forward(tokens)
        finally:
            session.close()

    @pytest.mark.parametrize("alpha", [1.0, 0.25])
    def test_each_use_case_changes_the_logits_as_its_merged_weights_do(
        self, stages: Stages, built: Built, alpha: float
    ) -> None:
        base, dressed = stages.reference(), stages.reference(large=alpha)
        got = self.logits(built, stages.tokens, large=alpha)
        assert decibels(dressed, got) > 25, "as the base is held to"
        # Alone, what the adapter changed: another one, or none, leaves less than 3 dB of it.
        effect = got - self.logits(built, stages.tokens)
        assert decibels(dressed - base, effect) > 12

    def test_a_combination_without_binaries_is_refused_with_those_that_have_some(
        self, stages: Stages, built: Built
    ) -> None:
        with pytest.raises(BadInput, match="no binaries were built") as raised:
            self.logits(built, stages.tokens, large=0.5)
        assert "use large, mild," in str(raised.value.remedy)
        base = self.logits(built, stages.tokens)
        assert np.array_equal(self.logits(built, stages.tokens, large=0.0), base)
        with pytest.raises(BadInput, match="binaries of their own"):
            open_executor(built.opened, cache=built.opened.folder, adapters=["large"])

    def test_base_names_no_adapter_and_use_cases_lie_in_folders_of_their_own(
        self, built: Built
    ) -> None:
        manifest = built.opened.manifest
        below = [name for name in manifest.files if name.startswith("adapters/merged/")]
        own = ("genie_config.json", "metadata.json", "part_1_of_1.bin")
        assert below == [f"adapters/merged/{case}/{name}" for case in ("large", "mild")
                         for name in own]  # fmt: skip
        plain = {
            name: file
            for name, file in manifest.files.items()
            if not name.startswith("adapters/") and name != "genie_config.json"
        }
        other = manifest.model_copy(update={"files": plain, "base": None, "schema_version": 1})
        assert manifest.base == other.revision()
        index = json.loads((built.opened.folder / "adapters/index.json").read_bytes())
        assert (index["schema_version"], index["merged"]) == (3, "All"), "older programs refuse it"

    def test_golden_prompts_are_recorded_and_genie_writes_them_with_each_use_case(
        self, built: Built
    ) -> None:
        recorded = built.opened.golden()
        assert recorded is not None
        assert set(recorded.worn) == {"large", "mild"}
        assert not [text for text in built.result.warnings if "Genie" in text]
        seen = built.result.notes["useCases"]
        assert {name: one["genieTokens"] for name, one in seen.items()} == {"large": 3, "mild": 3}

    def test_genie_s_configuration_of_a_use_case_is_a_plain_dialog_on_its_binaries(
        self, built: Built
    ) -> None:
        folder = built.opened.folder
        config, base = (
            json.loads((folder / name).read_bytes())["dialog"]
            for name in ("adapters/merged/mild/genie_config.json", "genie_config.json")
        )
        binary = config["engine"]["model"]["binary"]
        assert binary["ctx-bins"] == ["adapters/merged/mild/part_1_of_1.bin"]
        binary["ctx-bins"] = base["engine"]["model"]["binary"]["ctx-bins"]
        assert config == base, "no block of adapters, the same tokenizer and context"

    def test_adapters_of_it_are_only_changed_by_a_build(self, built: Built) -> None:
        with pytest.raises(BadInput, match=r"binaries of its own \(quantUpdatableMode All\)"):
            built.opened.check_takes_adapters()


@pytest.mark.usefixtures("built")
class TestRanges:
    """What is recorded of what."""

    pytestmark = needs_qnn

    def test_encodings_are_the_base_s_when_a_use_case_may_change_its_branches_alone(
        self, built: Built
    ) -> None:
        base, mild, large = (grids(built.converted[name]) for name in (None, "mild", "large"))
        assert base
        assert mild == base
        assert large != base, "All: the adapter goes further than the base"
        assert all(large[name] >= scale for name, scale in base.items()), "and no range shrinks"

    def test_reached_is_what_calibration_finds_in_the_merged_weights(
        self, stages: Stages, merged: Merged, built: Built, tmp_path: Path
    ) -> None:
        del built
        found = read_reached(merged.ranges["large"])
        weights = [(stages.stored["large"], stages.scale("large"))]
        core = merged_weights(stages.core, tmp_path / "core", weights)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        pieces = list(np.load(stages.text / "tokens.npy")[:, :64])
        wanted = calibrate(core, None, pieces, scratch=scratch)
        checked = 0
        for name, (low, high) in found.items():
            own = wanted.entries.get(name)
            if own is None or not own.per_tensor or name.endswith(".weight"):
                continue
            width = float(own.high - own.low)
            assert abs(min(low, 0.0) - float(own.low)) <= 0.02 * width, name
            assert abs(max(high, 0.0) - float(own.high)) <= 0.02 * width, name
            checked += 1
        assert checked > 40
        assert not read_reached(merged.ranges["mild"])

    def test_ranges_are_those_of_the_branches_that_are_used(
        self, merged: Merged, built: Built
    ) -> None:
        del built
        used = worn(merged, "mild")
        named = [one for one in read_inputs(merged.graph).branches if used.at(one.linear)]
        assert set(read_ranges(merged.ranges["mild"]).norms) == {one.linear for one in named}

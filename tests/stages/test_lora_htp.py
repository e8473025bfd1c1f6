"""Adapters as inputs of static graphs, through every stage for Snapdragon, run in the emulator."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import write_peft
from htp_stages import CHIP, GRAPH, SPLITS, fresh
from lora_stages import (
    CASE,
    LARGE,
    RANKS,
    Stages,
    decibels,
    needs_qnn,
)
from numpy.typing import NDArray

from genai_core.container.adapter_addition import AdditionAnswer, AdditionRequest
from genai_core.container.manifest import Manifest, read_manifest
from genai_core.errors import BadInput, InvalidSpec
from genai_core.facts import AdapterInputs
from genai_core.names import Backend
from genai_core.operations import (
    LoraGraphConfig,
    LoraImportConfig,
    PackageConfig,
)
from genai_runtime.container import container
from genai_runtime.container.backend import open_session
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.golden import replay
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.linear_sites import linear_sites
from genai_stages.lora.branch_inputs import branch_inputs, read_inputs, read_ranges
from genai_stages.lora.modules import places_of
from genai_stages.operations import (
    lora_graph,
    lora_import,
    package,
)
from genai_stages.package.addition import answer


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def built(stages: Stages) -> tuple[container.Container, Any]:
    """The container, and what its package said."""
    out = stages.folder("container")
    parts = stages.compiled()
    result = package.run(
        {
            **parts, "core": stages.core, "source": stages.source, "adapters": stages.graph,
            "ranges": stages.ranges, **stages.adapters,
        },
        PackageConfig(
            target="sm8750",
            backend=Backend.HTP,
            chip=CHIP,
            graphs=(GRAPH,),
            splits=SPLITS,
            context_length=32,
            golden_prompts=("def f(x):",),
            golden_max_tokens=3,
            adapters=("small", "large"),
            use_cases=(CASE,),
        ),
        out,
        fresh(stages.root),
    )  # fmt: skip
    return container.load(out), result


def test_lora_graph_takes_the_rank_of_what_is_used_at_once(stages: Stages) -> None:
    inputs = read_inputs(stages.graph)
    assert inputs.rank == 9, "both adapters of the use case side by side"
    assert len(inputs.branches) == 2 * len(LARGE)
    assert {one.a for one in inputs.branches} >= {"lora_l0_query_A", "lora_l1_down_A"}
    assert inputs.alpha == "lora_alpha"


def test_lora_graph_is_the_same_when_values_of_an_adapter_change(
    stages: Stages, tmp_path: Path
) -> None:
    sizes = {
        s.weight.removesuffix(".weight"): (s.outputs, s.inputs)
        for s in linear_sites(read_core(stages.core)[0])
        if s.weight.removesuffix(".weight").rpartition(".")[2] in LARGE
    }
    write_peft(tmp_path / "peft", sizes, rank=RANKS["large"], seed=7)
    for name in ("import", "graph"):
        (tmp_path / name).mkdir()
    inputs = {"adapter": tmp_path / "peft", "core": stages.core}
    lora_import.run(inputs, LoraImportConfig(), tmp_path / "import", fresh(tmp_path))
    lora_graph.run(
        {"core": stages.core, **stages.adapters, "adapter_1": tmp_path / "import"},
        LoraGraphConfig(together=((0, 1),)),
        tmp_path / "graph",
        fresh(tmp_path),
    )
    assert read_inputs(tmp_path / "graph") == read_inputs(stages.graph)


def reserved(stages: Stages, **more: Any) -> AdapterInputs:
    places = places_of(*read_core(stages.core))
    return branch_inputs(places, [{}], **{"alpha": "lora_alpha", **more})


def test_branch_inputs_reserve_modules_and_a_rank(stages: Stages) -> None:
    found = reserved(stages, max_rank=32, target_modules=["gate_proj"])
    assert found.rank == 32
    assert [one.a for one in found.branches] == ["lora_l0_gate_A", "lora_l1_gate_A"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"target_modules": ["nope"]}, "no linear of the model is one of them"),
        ({"target_modules": ["q_proj"], "alpha": "logits", "taken": {"logits"}}, "has a tensor"),
    ],
)
def test_branch_inputs_refuse_what_the_model_does_not_have(
    stages: Stages, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSpec, match=words):
        reserved(stages, **more)


@pytest.mark.parametrize("name", ["input_ids", "past_key_0_in", "attention_mask_w4"])
def test_lora_graph_refuses_an_alpha_that_is_called_like_an_input_of_every_graph(
    stages: Stages, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidSpec, match="is an input of every static graph"):
        lora_graph.run(
            {"core": stages.core, **stages.adapters},
            LoraGraphConfig(alpha=name),
            tmp_path,
            fresh(tmp_path),
        )


@pytest.mark.usefixtures("built")
class TestContainer:
    """What was built, run by the emulator."""

    pytestmark = needs_qnn

    def logits(
        self, opened: container.Container, tokens: NDArray[np.int64], **alphas: float
    ) -> NDArray[np.float32]:
        session = open_session(opened, worn=[AdapterUse(n, a) for n, a in alphas.items()])
        try:
            return session.forward(tokens)
        finally:
            session.close()

    @pytest.mark.parametrize(
        "alphas", [{"small": 1.0}, {"large": 1.0}, {"small": 0.5, "large": 0.25}, {"large": -0.5}]
    )
    def test_each_adapter_changes_the_logits_as_its_merged_weights_do(
        self, stages: Stages, built: tuple[container.Container, Any], alphas: dict[str, float]
    ) -> None:
        opened, _ = built
        base, worn = stages.reference(), stages.reference(**alphas)
        got = self.logits(opened, stages.tokens, **alphas)
        assert decibels(worn, got) > 25, "as the base is held to"
        # Alone, what the adapter changed: another adapter, or none, leaves less than 3 dB of it.
        effect = got - self.logits(opened, stages.tokens)
        assert decibels(worn - base, effect) > 12

    def test_without_an_adapter_it_is_the_base(
        self, stages: Stages, built: tuple[container.Container, Any]
    ) -> None:
        opened, _ = built
        got = self.logits(opened, stages.tokens)
        assert decibels(stages.reference(), got) > 25
        assert np.array_equal(got, self.logits(opened, stages.tokens, large=0.0)), "to the bit"

    def test_golden_prompts_are_those_of_each_use_case(
        self, built: tuple[container.Container, Any]
    ) -> None:
        opened, _ = built
        recorded = opened.golden()
        assert recorded is not None
        assert set(recorded.worn) == {"small", "large", "both"}
        session = open_session(opened, worn=[AdapterUse("large")])
        try:
            again = recorded.model_copy(update={"prompts": recorded.worn["large"], "worn": {}})
            assert replay(session, again).passed
        finally:
            session.close()

    def test_genie_writes_our_tokens_with_an_adapter_applied(
        self, built: tuple[container.Container, Any]
    ) -> None:
        _, result = built
        assert not [text for text in result.warnings if "Genie" in text]
        assert result.notes["useCases"]["small"]["genieTokens"] == 3

    def test_genie_reads_a_file_of_each_input_in_float32(
        self, stages: Stages, built: tuple[container.Container, Any]
    ) -> None:
        opened, _ = built
        config = json.loads((opened.folder / "genie_config.json").read_bytes())
        lora = config["dialog"]["engine"]["model"]["binary"]["lora"]
        assert lora["lora-version"] == 1
        assert lora["alpha-tensor-name"] == "lora_alpha"
        folders = {one["name"]: opened.folder / one["path"] for one in lora["adapters"]}
        assert set(folders) == {"small", "large", "both"}
        inputs = read_inputs(stages.graph)
        for folder in folders.values():
            assert {path.stem for path in folder.iterdir()} == inputs.names
        small = stages.stored["small"]
        branch = next(one for one in inputs.branches if one.a == "lora_l0_query_A")
        a = np.fromfile(folders["both"] / f"{branch.a}.raw", "<f4").reshape(branch.inputs, 9)
        b = np.fromfile(folders["both"] / f"{branch.b}.raw", "<f4").reshape(9, branch.outputs)
        module = "model.layers.0.self_attn.q_proj"
        large = stages.stored["large"]
        wanted = 0.5 * stages.scale("small") * (small[module][1] @ small[module][0])
        wanted += 0.25 * stages.scale("large") * (large[module][1] @ large[module][0])
        np.testing.assert_allclose((a @ b).T, wanted, rtol=1e-4, atol=1e-5)

    def test_manifest_states_a_base_that_names_no_adapter(
        self, built: tuple[container.Container, Any]
    ) -> None:
        opened, _ = built
        manifest = opened.manifest
        assert manifest.schema_version == 3, "an older program would compute another base"
        plain = {
            name: file
            for name, file in manifest.files.items()
            if not name.startswith("adapters/") and name != "genie_config.json"
        }
        other = manifest.model_copy(update={"files": plain, "base": None, "schema_version": 1})
        assert manifest.base == other.revision()
        assert read_manifest(manifest.to_bytes()) == manifest
        assert isinstance(manifest, Manifest)

    @pytest.mark.parametrize(
        ("alphas", "words"),
        [
            ({"large": 4.0}, r"B at .* reaches \+-.*, the graphs were built for \+-"),
            ({"small": 1.0, "large": 1.0, "other": 1.0}, "carries no adapter other"),
        ],
    )
    def test_what_the_graphs_cannot_hold_is_refused(
        self,
        stages: Stages,
        built: tuple[container.Container, Any],
        alphas: dict[str, float],
        words: str,
    ) -> None:
        with pytest.raises(BadInput, match=words):
            self.logits(built[0], stages.tokens, **alphas)

    def test_ranges_hold_what_the_branches_compute(self, stages: Stages) -> None:
        ranges, inputs = read_ranges(stages.ranges), read_inputs(stages.graph)
        for branch in inputs.branches:
            assert ranges.widest[branch.up] <= 4 * ranges.norms[branch.linear] * max(
                float(np.linalg.norm(self.scale_of(stages, name) * (b @ a), axis=1).max())
                for name, stored in stages.stored.items()
                for module, (a, b) in stored.items()
                if module in branch.linear.replace("/", ".")
            )

    def scale_of(self, stages: Stages, name: str) -> float:
        return stages.scale(name)

    def added(
        self, stages: Stages, opened: container.Container, to: Path, *, times: float, **peft: Any
    ) -> AdditionAnswer:
        """What a worker answers that is asked to add a third adapter to a copy."""
        shutil.copytree(opened.folder, to / "copy")
        sizes = {
            module: (b.shape[0], a.shape[1])
            for module, (a, b) in stages.stored["large"].items()
            if module.endswith("q_proj")
        }
        config = {"rank": 4, "lora_alpha": 4 * times, **peft}
        write_peft(to / "third", sizes, seed=5, **config)
        return answer(
            AdditionRequest(
                container=str(to / "copy"), adapter=str(to / "third"), name="third",
                core=str(stages.core),
            )
        )  # fmt: skip

    def test_a_later_adapter_becomes_files_beside_the_same_base(
        self, stages: Stages, built: tuple[container.Container, Any], tmp_path: Path
    ) -> None:
        opened, _ = built
        said = self.added(stages, opened, tmp_path, times=0.05)
        assert said.error is None
        again = container.load(tmp_path / "copy")
        assert said.facts["base"] == again.manifest.base == opened.manifest.base
        assert again.revision != opened.revision
        changed = {
            name
            for name, file in again.manifest.files.items()
            if opened.manifest.files.get(name) != file
        }
        own = {name for name in changed if "third" in name}
        assert changed - own == {"adapters/index.json", "genie_config.json"}
        assert len(own) == 1 + 2 * 2 * len(LARGE) + 1, "its matrices, and Genie's of every input"
        config = json.loads((again.folder / "genie_config.json").read_bytes())
        lora = config["dialog"]["engine"]["model"]["binary"]["lora"]
        assert [one["name"] for one in lora["adapters"]] == ["small", "large", "third", "both"]
        recorded = again.golden()
        assert recorded is not None
        assert set(recorded.worn) == {"small", "large", "both", "third"}

    @pytest.mark.parametrize(
        ("times", "peft", "words"),
        [
            (50.0, {}, r"A?B at .* reaches \+-.*, the graphs were built for \+-.* 1 third"),
            (0.05, {"rank": 12}, "its rank is 12, the graphs were built for 9"),
        ],
    )
    def test_a_later_adapter_that_the_graphs_cannot_hold_is_refused(
        self, stages: Stages, built: tuple[container.Container, Any], tmp_path: Path,
        times: float, peft: dict[str, Any], words: str,
    ) -> None:  # fmt: skip
        said = self.added(stages, built[0], tmp_path, times=times, **peft)
        assert said.error is not None
        text = f"{said.error['message']} {said.error['where']}"
        assert re.search(words.replace(" 1 third", ".*1 third"), text), text
        assert "lora." in said.error["remedy"]
        assert said.error["code"] == "BadInput"

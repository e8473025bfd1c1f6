"""Adapters, by the commands that users type: built onto what stands, worn per command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builds import EVAL, EXAMPLE, Built
from safetensors.numpy import load_file, save_file

from genai_core.container.outside import vouch_for


@pytest.fixture(scope="module")
def adapted(built: Built) -> dict[str, Any]:
    """The example with its adapters, in the store that has the base."""
    return built.build("-f", EXAMPLE / "adapters.yaml")


@pytest.fixture(scope="module")
def container(built: Built, adapted: dict[str, Any]) -> Path:
    del adapted
    return built.output / "tiny-llama-adapters" / "cpu"


def test_adapters_run_no_task_of_the_base_when_that_stands(
    built: Built, adapted: dict[str, Any]
) -> None:
    tasks = adapted["tasks"]
    assert isinstance(tasks, dict)
    # Other tests may have imported the same adapters into this store.
    assert 1 <= tasks["run"] <= 3, "two imports and the package"
    again = built.build("-f", EXAMPLE / "adapters.yaml")
    assert again["tasks"]["run"] == 0
    revisions = [build["containers"]["cpu"]["revision"] for build in (adapted, again)]
    assert revisions[0] == revisions[1]


def test_base_of_a_container_with_adapters_is_the_revision_without(
    built: Built, container: Path
) -> None:
    manifest = json.loads((container / "manifest.json").read_bytes())
    plain = built.answer["containers"]["cpu"]["revision"]
    assert manifest["base"] == plain
    assert manifest["schema_version"] == 2, "an older program refuses it by its version"
    assert "adapters/c-headers.safetensors" in manifest["files"]
    for name in ("model.onnx", "model.data", "metadata.json"):
        assert (container / name).read_bytes() == (built.container("cpu") / name).read_bytes()


def nats(built: Built, container: Path, *arguments: str) -> float:
    ran = built.program.ok(
        "evaluate", container, "--tokens", EVAL, "--pieces", "4", "--json", *arguments
    )
    return float(ran.json["natsPerToken"])


def test_evaluate_wears_what_it_is_told(built: Built, container: Path) -> None:
    base = nats(built, container)
    assert base == nats(built, built.container("cpu"))
    assert base == nats(built, container, "--adapter", "c-headers=0")
    c, upper = (nats(built, container, "--adapter", name) for name in ("c-headers", "uppercase"))
    assert c > base + 0.1, "it was trained on other text"
    assert upper > base + 0.1
    assert c != upper
    both = nats(built, container, "--use-case", "loud-headers")
    worn = ("--adapter", "c-headers=0.5", "--adapter", "uppercase=0.5")
    assert both == nats(built, container, *worn)
    assert both not in (base, c, upper)


def test_run_writes_another_text_with_an_adapter(built: Built, container: Path) -> None:
    def text(*arguments: str) -> str:
        prompt = ("--prompt", "THIS SOFTWARE IS", "--max-tokens", "12", "--json")
        return str(built.program.ok("run", container, *prompt, *arguments).json["text"])

    assert text("--adapter", "uppercase").isupper()
    assert text("--adapter", "uppercase") != text()
    assert text("--adapter", "uppercase=0") == text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--adapter", "nope"), "has no adapter nope; use c-headers, uppercase"),
        (("--adapter", "uppercase=loud"), "'loud' is no number"),
        (("--adapter", "uppercase=inf"), "'inf' is no number"),
        (("--adapter", "uppercase", "--adapter", "uppercase=2"), "given twice"),
        (("--use-case", "nope"), "has no use case nope; use loud-headers"),
        (("--use-case", "loud-headers", "--adapter", "uppercase"), "leave one of them out"),
    ],
)
def test_run_refuses_what_the_container_does_not_carry(
    built: Built, container: Path, arguments: tuple[str, ...], words: str
) -> None:
    ran = built.program("run", container, "--prompt", "x", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""


def test_an_adapter_for_a_container_without_any_is_refused_and_never_left_out(
    built: Built,
) -> None:
    for target in ("cpu", "sm8750"):
        ran = built.program(
            "run", built.container(target), "--prompt", "x", "--adapter", "uppercase"
        )
        assert ran.code == 2
        assert "has no adapter uppercase; build it with spec.lora" in ran.err


def test_inspect_lists_adapters_and_use_cases(built: Built, container: Path) -> None:
    out = built.program.ok("inspect", container).out
    assert "c-headers (rank 8, 12 linears), uppercase (rank 16, 24 linears)" in out
    assert "loud-headers: 0.5 c-headers + 0.5 uppercase" in out


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A private copy of the example."""
    for name in ("model", "adapters"):
        shutil.copytree(EXAMPLE / name, tmp_path / name)
    shutil.copy(EXAMPLE / "adapters.yaml", tmp_path)
    return tmp_path


def test_a_changed_adapter_imports_itself_and_packages(built: Built, example: Path) -> None:
    weights = example / "adapters" / "uppercase-r16" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    tensors[name] = (tensors[name] * np.float32(1.01)).astype(np.float32)
    save_file(tensors, weights)
    ran = built.program.ok(
        "build", "-f", example / "adapters.yaml", "--store", built.store,
        "--output", example / "out", "--json",
    )  # fmt: skip
    assert ran.json["tasks"]["run"] == 2


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (shutil.rmtree, "holds no adapter_config.json"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"
            ),
            "a pickle, which is never opened",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
    ],
)
def test_a_broken_adapter_is_one_line_that_names_it(
    built: Built, example: Path, break_it: object, words: str
) -> None:
    assert callable(break_it)
    break_it(example / "adapters" / "uppercase-r16")
    ran = built.program(
        "build",
        "-f",
        example / "adapters.yaml",
        "--store",
        built.store,
        "--output",
        example / "out",
    )
    assert ran.code == 2
    assert words in ran.err
    assert not [path for path in (example / "out").rglob("*") if path.is_file()]


def test_each_use_case_has_its_own_drift_and_golden_prompts(built: Built, container: Path) -> None:
    report = json.loads((container / "report.json").read_bytes())
    drift = report["stages"]["package"]["useCases"]
    assert set(drift) == {"c-headers", "uppercase", "loud-headers"}
    for found in drift.values():
        assert 0 <= found["divergence"] < 0.02, "W8A16 against its own simulation"
        assert abs(found["natsPerToken"] - found["baselineNats"]) < 0.1
    ran = built.program.ok("verify", container, "--golden", "--json").json["golden"]
    assert set(ran) == {"base", *drift}
    assert all(one["tokens"] == 16 and one["differ"] == 0 for one in ran.values())


def test_verify_ends_with_1_when_an_adapter_answers_otherwise(
    built: Built, container: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(container, tmp_path / "cpu")
    golden = json.loads((copy / "golden.json").read_bytes())
    entry = golden["worn"]["uppercase"][0]
    place = max(range(16), key=lambda at: entry["margins"][at])
    entry["tokens"][place] = 7
    (copy / "golden.json").write_text(json.dumps(golden))
    assert "wrong    golden.json" in built.program("verify", copy, "--golden").out
    vouch_for(copy)
    ran = built.program("verify", copy, "--golden")
    assert ran.code == 1
    assert "golden prompts, uppercase: " in ran.out
    assert f"prompt 0 at {place} wants 7" in ran.out
    assert "golden prompts, base: 16 tokens as recorded" in ran.out


def test_build_leaves_a_report_page_with_adapters_and_times(built: Built, container: Path) -> None:
    page = (container.parent / "report.html").read_text(encoding="utf-8")
    revision = built.program.ok("verify", container, "--json").json["revision"]
    told = ("loud-headers", "rank 16, 24 linears", "lora_import/uppercase", "matched")
    for shown in (revision, *told):
        assert shown in page

"""One command takes a real model to genuine containers; the store does what it promises."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from builds import EVAL, EXAMPLE, ROOT, Built

from genai_cli.testing import Program
from genai_core.tasks.record import Record
from genai_runtime.htp.vendor import genie

pytestmark = pytest.mark.qnn

SPEC = yaml.safe_load((EXAMPLE / "build.yaml").read_text())


def spec_file(path: Path, model: Path, **changes: object) -> Path:
    """The example's YAML with another place of the model and changed fields of the spec."""
    spec = {**SPEC["spec"], **changes, "model": {"source": str(model)}}
    document = {**SPEC, "metadata": {"name": "tiny-llama"}, "spec": spec}
    path.write_text(yaml.safe_dump(document, sort_keys=True))
    return path


def not_cached(plan: dict[str, dict[str, object]]) -> set[str]:
    return {name for name, task in plan.items() if not task["cached"]}


# One call does all stages (B1), quantized parts become DLCs (B13)


def test_one_command_runs_every_stage(built: Built) -> None:
    counts = Counter(record["operation"] for record in built.records())
    assert counts == {
        "ingest": 1, "arcl": 2, "transform": 6, "convert": 7, "compile": 4, "fidelity": 2,
        "package": 2,
    }  # fmt: skip
    assert built.answer["tasks"] == {"total": 24, "run": 24, "cached": 0, "failed": 0}
    manifest = json.loads((built.container("sm8750") / "manifest.json").read_bytes())
    names = {graph["name"] for graph in manifest["graphs"]}
    assert names == {
        f"{role}_cl256_{k}_of_3" for role in ("prompt_ar32", "token_ar1") for k in (1, 2, 3)
    }
    assert {"tokenizer.json", "genie_config.json"} <= manifest["files"].keys()
    assert manifest["target"]["soc_model"] == 69
    dlcs = {path.name for path in built.store.glob("tiny-llama/convert_*/*.dlc")}
    assert dlcs == {f"{g}_cl256_{k}_of_3.dlc" for g in ("ar1", "ar32") for k in (1, 2, 3)}


def test_the_htp_container_answers_as_genie_does(built: Built) -> None:
    folder = built.container("sm8750")
    config = json.loads((folder / "genie_config.json").read_bytes())
    paths = re.findall(r'"([^"]+\.(?:bin|json))"', json.dumps(config))
    assert paths
    assert not [path for path in paths if path.startswith("/") or ".." in path]
    recorded = json.loads((folder / "golden.json").read_bytes())["prompts"][0]
    # Genie puts the beginning token in front of what it is given; so did the tokenizer.
    answer = genie.query(
        folder, genie.emulated(config), tokens=recorded["prompt_tokens"][1:], max_tokens=8
    )
    assert list(answer.tokens)[:8] == recorded["tokens"][:8]


def test_both_containers_keep_their_source_s_loss(built: Built) -> None:
    for target in ("cpu", "sm8750"):
        report = json.loads((built.container(target) / "report.json").read_bytes())
        assert report["fidelity"]["within"] is True
        assert report["stages"]["ingest"]["drift"] < 1e-4
        assert all(one["cpuSeconds"] > 0 for name, one in report["stages"].items()
                   if name != "package")  # fmt: skip
    assert report["stages"]["package"]["genieTokens"] == 4
    drifts = {name: noted.get("drift") for name, noted in report["stages"].items()}
    assert all(
        drifts[f"transform/ar{ar}_cl256_{k}_of_3"] < 1e-5 for ar in (1, 32) for k in (1, 2, 3)
    )
    assert all(drifts[f"arcl/ar{ar}_cl256"] < 2e-4 for ar in (1, 32))
    ran = built.program.ok("evaluate", built.container("cpu"), "--tokens", EVAL, "--json")
    assert ran.json["tokens"] == 64 * 255


# Unchanged is skipped (B18), changed is rebuilt and only it (B19)


def test_renaming_and_reordering_run_nothing(built: Built, model: Path, tmp_path: Path) -> None:
    (model / "model.onnx").rename(model / "other-name.onnx")
    (model / "model.encodings").rename(model / "something.encodings")
    file = spec_file(tmp_path / "again.yaml", model)
    file.write_text(file.read_text().replace("name: tiny-llama", "name: renamed"))
    started = time.monotonic()
    again = built.build("-f", file)
    assert time.monotonic() - started < 10
    assert again["tasks"]["run"] == 0
    for target, container in again["containers"].items():
        assert container["revision"] == built.answer["containers"][target]["revision"]


def test_the_documents_show_the_revision_that_comes_out(built: Built) -> None:
    """The cpu container's digest is a promise to every machine; a target has one everywhere."""
    revisions = {target: one["revision"] for target, one in built.answer["containers"].items()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"sha256:[0-9a-f]{64}", readme))
    assert revisions["cpu"] in shown
    assert len(shown) == len(revisions)
    for name in ("docs/cli.md", "docs/install.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert set(re.findall(r"sha256:[0-9a-f]{64}", text)) <= shown, name


def test_another_chip_keeps_the_graphs(built: Built, tmp_path: Path) -> None:
    file = spec_file(tmp_path / "chip.yaml", EXAMPLE / "model", targets=["sm8650"])
    plan = built.plan("-f", file)
    assert not_cached(plan) == {
        *(f"compile/sm8650/{k}_of_3" for k in (1, 2, 3)), "fidelity/sm8650", "package/sm8650",
    }  # fmt: skip


def test_another_ar_adds_its_own_tasks(built: Built, tmp_path: Path) -> None:
    graphs = {"autoRegression": [1, 16, 32], "contextLengths": [256]}
    file = spec_file(tmp_path / "ar.yaml", EXAMPLE / "model", targets=["sm8750"], graphs=graphs)
    counts = Counter(name.split("/")[0] for name in not_cached(built.plan("-f", file)))
    assert counts == {
        "arcl": 1, "transform": 3, "convert": 3, "compile": 3, "fidelity": 1, "package": 1,
    }  # fmt: skip


def test_changed_encodings_rebuild_from_convert_on(
    built: Built, model: Path, tmp_path: Path
) -> None:
    encodings = json.loads((model / "model.encodings").read_bytes())
    entry = next(e for e in encodings["param_encodings"] if e["enc_type"] == "PER_CHANNEL")
    entry["scale"] = [scale * 1.001 for scale in entry["scale"]]
    (model / "model.encodings").write_text(json.dumps(encodings))
    cpu = built.build("-f", spec_file(tmp_path / "cpu.yaml", model, targets=["cpu"]))
    assert cpu["tasks"]["run"] == 5  # ingest again, but it yields the same core graph
    plan = built.plan("-f", spec_file(tmp_path / "both.yaml", model))
    stages = {name.split("/")[0] for name in not_cached(plan)}
    assert stages == {"convert", "compile", "fidelity", "package"}


# Layout (B20), invalidation (B21), partial build (B22), replay (B23), a container pulled (B24)


def test_entries_are_laid_out_as_the_vendor_s_builder_does(built: Built) -> None:
    entries = sorted(built.store.glob("tiny-llama/*/builder_cache_info.json"))
    assert len(entries) >= 24
    for entry in entries:
        info = json.loads(entry.read_bytes())
        operation, short = entry.parent.name.split("_")
        assert info["operation"] == operation
        assert re.fullmatch("[0-9a-f]{64}", info["hash"])
        assert info["hash"].startswith(short)
        assert len(short) == 32
        assert all(isinstance(value, str) for value in info["config"].values())
        assert info["created_at"].endswith("+00:00")


def test_a_deleted_entry_alone_runs_again(built: Built) -> None:
    folder = next(built.store.glob("tiny-llama/arcl_*/ar1_cl256.onnx")).parent
    shutil.rmtree(folder)
    again = built.build("-f", EXAMPLE / "build.yaml")
    assert again["tasks"]["run"] == 1
    assert (folder / "ar1_cl256.onnx").exists()


def test_a_flipped_byte_is_found_and_made_again(built: Built) -> None:
    part = next(built.store.glob("tiny-llama/compile_*/part_3_of_3.bin"))
    digest = next(
        output["sha256"]
        for record in built.records()
        for name, output in record["outputs"].items()
        if name == "part_3_of_3.bin"
    )
    blob = built.store / "blobs" / digest[:2] / digest
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    assert built.program("cache", "verify", "--store", built.store).code == 1
    built.program("cache", "verify", "--remove", "--store", built.store)
    again = built.build("-f", EXAMPLE / "build.yaml")
    assert again["tasks"]["run"] >= 1
    assert (
        again["containers"]["sm8750"]["revision"]
        == (built.answer["containers"]["sm8750"]["revision"])
    )
    assert part.exists()
    assert built.program("cache", "verify", "--store", built.store).code == 0


def _is_ours(process: Path) -> bool:
    """Whether a process of /proc descends from this one."""
    pid = int(process.name)
    while pid not in {0, os.getpid()}:
        # Behind the program's name, which may hold brackets: state, parent.
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid != 0


@contextlib.contextmanager
def compiler_that_dies(part: str) -> Iterator[None]:
    """Kill this test's compiler whenever it works on one part; other builds of the machine stay."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            for process in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if (
                        process.name.isdigit()
                        and b"compile_child" in (process / "cmdline").read_bytes()
                        and part in (process / "cwd/request.json").read_text()
                        and _is_ours(process)
                    ):
                        os.kill(int(process.name), signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_partial_build_keeps_what_it_has(built: Built, tmp_path: Path) -> None:
    file = spec_file(tmp_path / "chip.yaml", EXAMPLE / "model", targets=["sm8550"])
    arguments = ("build", "-f", file, "--store", built.store, "--output", tmp_path / "out")
    with compiler_that_dies("part_2_of_3"):
        failed = built.program(*arguments)
    assert failed.code == 1
    assert "compile/sm8550/2_of_3" in failed.err
    assert "SIGKILL" in failed.err
    made = {
        name
        for record in built.records()
        if record["operation"] == "compile" and record["facts"].get("socModel") == 43
        for name in record["outputs"]
        if name.endswith(".bin") and "/" not in name
    }
    assert made == {"part_1_of_3.bin", "part_3_of_3.bin"}
    cured = built.plan("-f", file)
    assert not_cached(cured) == {"compile/sm8550/2_of_3", "fidelity/sm8550", "package/sm8550"}


@pytest.mark.parametrize("operation", ["arcl", "transform", "convert", "compile"])
def test_replaying_an_entry_gives_the_same_digests(built: Built, operation: str) -> None:
    entry = min(built.store.glob(f"tiny-llama/{operation}_*"))
    ran = built.program.ok("replay", entry, "--json")
    assert ran.json["same"] is True, ran.json


def test_a_pulled_container_is_whole(built: Built, tmp_path: Path) -> None:
    record = next(
        Record.model_validate(record)
        for record in built.records()
        if record["operation"] == "package" and record["config"]["target"] == "cpu"
    )
    built.program.ok("cache", "pull", record.key, "-o", tmp_path / "c", "--store", built.store)
    program = Program(tmp_path)
    there = program.ok("inspect", tmp_path / "c", "--json").json
    assert there["revision"] == f"{record.facts['revision']}"
    ran = program.ok("run", tmp_path / "c", "--prompt", "def ", "--max-tokens", "4", "--json")
    assert len(ran.json["tokens"]) == 4
    assert program("verify", tmp_path / "c").code == 0


# The commands of a newcomer's first minutes


def test_both_containers_converse_and_are_what_their_manifests_say(built: Built) -> None:
    folder = built.container("cpu").parent
    found = built.program(
        "run", folder, "--chat", "--prompt", "def f(x):", "--max-tokens", "6", "--json"
    )
    assert found.code == 0, found.err
    assert f"container {folder}/cpu (there too: sm8750)" in found.err
    named = [
        built.program(
            "run", folder / target, "--chat", "--prompt", "def f(x):", "--max-tokens", "6", "--json"
        ).json
        for target in ("cpu", "sm8750")
    ]
    assert found.json["tokens"] == named[0]["tokens"]
    assert named[1]["tokens"][:2] == named[0]["tokens"][:2], "both read the same conversation"
    for target in ("cpu", "sm8750"):
        checked = built.program("verify", folder / target, "--json")
        assert checked.code == 0, checked.out
        assert checked.json["revision"] == built.answer["containers"][target]["revision"]

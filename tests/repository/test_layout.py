"""The repository keeps its own rules."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "planner", "runtime", "stages", "serving", "cli", "operator", "builder")


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_modules_stay_small() -> None:
    limits = {"tests": 800}
    large = {
        str(path.relative_to(ROOT)): lines
        for path in tracked("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines()))
        > limits.get(path.relative_to(ROOT).parts[0], 600)
    }
    assert not large, "these have more than one reason to change; make a folder of each"


def test_the_operator_folder_never_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_tests_are_no_packages() -> None:
    assert not [path for path in tracked("tests/*.py") if path.name == "__init__.py"]


def test_test_modules_have_unique_names() -> None:
    names = [path.name for path in tracked("tests/*.py") if path.name.startswith("test_")]
    assert len(names) == len(set(names))


def test_every_room_says_what_it_knows() -> None:
    for room in ROOMS:
        text = (ROOT / room / "README.md").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, f"{room}/README.md: a page, not a book"
        assert room in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_file_names_a_machine_or_a_registry_host() -> None:
    forbidden = re.compile(r"(/root/|/home/[a-z]|/work/|files\.pythonhosted|pypi\.org|--index-url)")
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".onnx", ".data", ".npy", ".npz", ".gz"}:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group(0)}" for m in forbidden.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    "module", ["genai_core.kinds.build", "genai_planner", "genai_cli.__main__"]
)
def test_light_rooms_import_nothing_heavy(module: str) -> None:
    code = (
        f"import {module}, sys;"
        "print(','.join(m for m in ('numpy','onnx','onnxruntime','onnx_ir','boto3')"
        " if m in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.strip() == ""


def test_contributing_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ")][1:]
    named = [
        name for row in rows for cell in row for name in re.findall(r"[\w.-]+/[\w./-]*\w", cell)
    ]
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists()]


def test_folders_of_more_than_seventeen_modules_have_parts() -> None:
    modules = Counter(
        path.parent
        for room in (*ROOMS, "benchmarks")
        for path in tracked(f"{room}/*.py")
        if path.name != "__init__.py"
    )
    assert not {str(folder): n for folder, n in modules.items() if n > 17}, "give it parts"


@pytest.mark.parametrize("room", ["core", "runtime", "stages", "cli"])
def test_parts_of_a_room_say_what_they_own(room: str) -> None:
    package = ROOT / room / f"genai_{room}"
    parts = {path.parent for path in tracked(f"{room}/*/*/__init__.py")}
    assert parts
    for part in sorted(part for part in parts if part.parent == package):
        text = (part / "README.md").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, part

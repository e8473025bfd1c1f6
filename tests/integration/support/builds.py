"""tiny-llama, built once for all of this folder's tests, by the command that users type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_cli.testing import Program

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/tiny-llama"
EVAL = ROOT / "tests/fixtures/tokens/eval.npy"


@dataclass(frozen=True)
class Built:
    """A finished build.

    Attributes:
        program: Runs `genai` in an empty folder.
        store: Its store.
        output: Holds the containers.
        answer: What `--json` printed.
    """

    program: Program
    store: Path
    output: Path
    answer: dict[str, Any]

    def container(self, target: str) -> Path:
        return self.output / "tiny-llama" / target

    def records(self) -> list[dict[str, Any]]:
        """All records of the store."""
        return [
            json.loads(path.read_bytes()) for path in sorted(self.store.glob("records/*/*.json"))
        ]

    def plan(self, *arguments: str | Path) -> dict[str, dict[str, Any]]:
        """`genai graph --json`: task id -> task."""
        ran = self.program.ok("graph", *arguments, "--store", self.store, "--json")
        return {task["id"]: task for task in ran.json["tasks"]}

    def build(self, *arguments: str | Path) -> dict[str, Any]:
        """`genai build --json` into the same store."""
        return self.program.ok(
            "build", *arguments, "--store", self.store, "--output", self.output, "--json"
        ).json

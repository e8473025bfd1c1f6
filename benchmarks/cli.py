"""What the command line takes, each time next to its peers in the same run.

    python benchmarks/cli.py [--rounds 7] [--builds 1] [--olive DIR | --no-olive] [--json FILE]

`genai --help` against a bare Python and `olive --help`; the demo (examples/tiny-llama, every
target that its file names) built into an empty store, and once more with nothing to do, against one
pass of Olive over the same model, first and cached. Medians of wall time, with CPU time beside it,
since that hardly depends on what else the machine does. Ends with exit code 1 where a limit is
missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from commands import Cost, machine_text, middle, run
from olive_peer import environment, quantize

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "tiny-llama"
GENAI = Path(sys.executable).parent / "genai"


@dataclass(frozen=True)
class Row:
    """One line of the table; limit in seconds of wall time, 0 for a peer."""

    what: str
    runs: int
    cost: Cost
    limit: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the limit holds."""
        return not self.limit or self.cost.seconds <= self.limit


def help_rows(work: Path, rounds: int, olive: Path | None) -> list[Row]:
    """Starting up: interleaved, so that each sees the same machine."""
    commands: dict[str, list[str | Path]] = {
        "`genai --help`": [GENAI, "--help"],
        "bare Python, `-c pass`": [sys.executable, "-c", "pass"],
    }
    if olive:
        commands["`olive --help`"] = [olive.parent / "olive", "--help"]
    costs: dict[str, list[Cost]] = {what: [] for what in commands}
    for _ in range(rounds):
        for what, command in commands.items():
            costs[what].append(run(command, log=work / "help.log"))
    limits = {"`genai --help`": 0.4}
    return [
        Row(what, rounds, middle(found), limits.get(what, 0.0)) for what, found in costs.items()
    ]


def build_rows(work: Path, rounds: int, builds: int, olive: Path | None) -> list[Row]:
    """The demo into an empty store, then with nothing left to do."""
    cold: list[Cost] = []
    warm: list[Cost] = []
    for number in range(builds):
        folder = work / f"build-{number}"
        command: list[str | Path] = [
            GENAI, "build", "-f", DEMO / "build.yaml",
            "--store", folder / "store", "--output", folder / "containers",
        ]  # fmt: skip
        cold.append(run(command, log=folder / "cold.log"))
        warm += [run(command, log=folder / "warm.log") for _ in range(rounds)]
    rows = [
        Row("demo, empty store", builds, middle(cold), 60.0),
        Row("demo again, nothing to do", len(warm), middle(warm), 1.5),
    ]
    if olive:
        model = DEMO / "model" / "model.onnx"
        first = quantize(olive, model, work / "olive")
        again = [quantize(olive, model, work / "olive") for _ in range(min(rounds, 3))]
        rows += [
            Row("Olive, its static quantization alone", 1, first),
            Row("Olive again, cached", len(again), middle(again)),
        ]
    return rows


def print_table(rows: list[Row]) -> None:
    """As Markdown, to be taken into docs/benchmarks.md."""
    print(f"{machine_text()}\n")
    print("| | runs | wall s | CPU s | peak MB | limit s | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        verdict = ("met" if row.met else "**missed**") if row.limit else ""
        limit = f"{row.limit:g}" if row.limit else ""
        cost = row.cost
        print(
            f"| {row.what} | {row.runs} | {cost.seconds:.2f} | {cost.cpu_seconds:.2f} "
            f"| {cost.peak_bytes / 1e6:.0f} | {limit} | {verdict} |"
        )


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--builds", type=int, default=1, help="demos into an empty store")
    parser.add_argument("--folder", type=Path, help="on the disk to work on")
    parser.add_argument("--olive", type=Path, default=ROOT / ".build" / "olive",
                        help="environment of the peer; made where there is none")  # fmt: skip
    parser.add_argument("--no-olive", action="store_true", help="without the peer")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    olive = None if given.no_olive else environment(given.olive.absolute())
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-cli-") as name:
        rows = help_rows(Path(name), given.rounds, olive)
        rows += build_rows(Path(name), given.rounds, given.builds, olive)
    print_table(rows)
    if given.json:
        figures = {"machine": machine_text(), "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

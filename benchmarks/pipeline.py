"""What building a model of 0.4 B parameters takes, stage by stage, next to Olive on the same ONNX.

    python benchmarks/pipeline.py [--layers 24] [--jobs 1] [--olive DIR | --no-olive] [--json FILE]

Writes the model (see scale_model.py) where it is not there yet, builds it with `genai build` into
an empty store for sm8750 and cpu, 4 splits, AR 128 and 1, CL 1024, and reads seconds and peak
memory of every task from the records in the store. Where ONNX work is ours, a task may take 1.5
times the float weights of its own split and 400 MB; a stage that works on the whole model (ingest,
arcl, compile for cpu) is held to the largest split. Then Olive quantizes the same file: time and
memory of our tasks that end in the same thing (ingest, arcl, transform and convert of the prompt
graph, all splits) stand beside it. One task at a time unless --jobs says otherwise, so that figures
are those of the task alone. Ends with exit code 1 where a bound or an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commands import Cost, machine_text, run
from olive_peer import environment, output_bytes, quantize
from scale_export import Sizes
from scale_model import write

from genai_core.facts import ModelFacts
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.record import Record

ROOT = Path(__file__).resolve().parents[1]
GENAI = Path(sys.executable).parent / "genai"
PROMPT, CONTEXT, SPLITS = 128, 1024, 4
FLOOR = 400_000_000
AIM_SECONDS, AIM_BYTES = 0.25, 0.1
"""Of Olive's."""
OURS = ("ingest", "arcl", "transform", "convert htp", "convert cpu", "compile cpu")
"""Stages whose memory is bounded; compile for htp takes what the vendor's library takes."""


@dataclass(frozen=True)
class Task:
    """One task as its record tells it.

    Attributes:
        stage: Operation and, where there are two, backend.
        ar: Of its graph; 0 where it has none.
        seconds: Wall time.
        cpu_seconds: User and system time of its processes.
        peak_bytes: Largest resident set of a process of it.
        library_bytes: Of the process in which only the vendor's library works; 0 = none.
        bound_bytes: What it may take; 0 = no bound.
    """

    stage: str
    ar: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    library_bytes: int
    bound_bytes: int


def build(model: Path, work: Path, targets: Sequence[str], *, jobs: int) -> Cost:
    """Build into an empty store."""
    for folder in ("store", "containers"):
        shutil.rmtree(work / folder, ignore_errors=True)
    command: list[str | Path] = [
        GENAI, "build", model, *(part for target in targets for part in ("--target", target)),
        "--ar", f"1,{PROMPT}", "--cl", str(CONTEXT), "--splits", str(SPLITS),
        "--jobs", str(jobs), "--store", work / "store", "--output", work / "containers",
    ]  # fmt: skip
    return run(command, log=work / "build.log")


def tasks_of(folder: Path) -> list[Task]:
    """All tasks of a store that has seen one build."""
    store = DirectoryStore(folder)
    found = [store.get_record(ref.operation, ref.key) for ref in store.list_records()]
    records = sorted((one.record for one in found if one), key=lambda one: one.created_at)
    facts = _facts(store, records)
    largest = max(
        _weights(one.config["split"], facts) for one in records if one.operation == "transform"
    )
    return [_task(record, facts, largest) for record in records]


def _facts(store: DirectoryStore, records: Sequence[Record]) -> ModelFacts:
    (ingest,) = (one for one in records if one.operation == "ingest")
    return ModelFacts.model_validate_json(store.read_blob(ingest.outputs["facts.json"]))


def _weights(part: Any, facts: ModelFacts) -> int:
    """Float bytes of a split, or of a range of layers."""
    groups = [f"layer_{layer:03d}" for layer in range(part["first"], part["last"])]
    groups += ["embed"] * part["embedding"] + ["head"] * part["lm_head"]
    return sum(facts.groups[group].size_bytes for group in groups)


def _task(record: Record, facts: ModelFacts, largest: int) -> Task:
    config: Mapping[str, Any] = record.config
    stage = record.operation
    if config.get("backend"):
        stage += f" {str(config['backend']).lower()}"
    part = config.get("split") or (config if "first" in config else None)
    weights = _weights(part, facts) if part else largest
    notes = record.measurements.notes
    library = notes.get("compilePeakMemoryBytes") or notes.get("dlcPeakMemoryBytes") or 0
    return Task(
        stage,
        (config.get("graph") or {}).get("ar", 0),
        record.measurements.seconds,
        float(str(notes.get("cpuSeconds", 0.0))),
        record.measurements.peak_memory_bytes,
        int(str(library)),
        int(1.5 * weights) + FLOOR if stage in OURS else 0,
    )


def print_stages(tasks: Sequence[Task]) -> bool:
    """One line a stage; returns whether all bounds hold."""
    stages: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        stages[task.stage].append(task)
    print(
        "| stage | tasks | seconds in all | slowest | CPU s in all | peak MB | the library's MB "
        "| bound MB | |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    held = True
    for stage, members in stages.items():
        worst = max(members, key=lambda task: task.peak_bytes / (task.bound_bytes or 1))
        within = not worst.bound_bytes or worst.peak_bytes <= worst.bound_bytes
        held = held and within
        verdict = ("met" if within else "**missed**") if worst.bound_bytes else ""
        library = max(task.library_bytes for task in members)
        print(
            f"| {stage} | {len(members)} | {sum(task.seconds for task in members):.1f} "
            f"| {max(task.seconds for task in members):.1f} "
            f"| {sum(task.cpu_seconds for task in members):.1f} | {worst.peak_bytes / 1e6:.0f} "
            f"| {f'{library / 1e6:.0f}' if library else ''} "
            f"| {f'{worst.bound_bytes / 1e6:.0f}' if worst.bound_bytes else ''} | {verdict} |"
        )
    return held


def comparable(tasks: Sequence[Task]) -> list[Task]:
    """The tasks between the source and the prompt graph's QDQ parts (and their DLCs)."""
    stages = ("ingest", "arcl", "transform", "convert htp")
    return [task for task in tasks if task.stage in stages and task.ar in (0, PROMPT)]


def print_peer(tasks: Sequence[Task], olive: Cost, written: int) -> bool:
    """Ours beside Olive's; returns whether the aims are reached."""
    chosen = comparable(tasks)
    converts = [task for task in chosen if task.stage == "convert htp"]
    print(
        "| from the source to QDQ, AR 128 | seconds | of Olive's | CPU s | of Olive's | peak MB "
        "| of Olive's |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = {
        "ingest, arcl, transform, convert, one after the other": chosen,
        "convert alone (QDQ and DLC)": converts,
    }
    for what, members in rows.items():
        seconds = sum(task.seconds for task in members)
        cpu = sum(task.cpu_seconds for task in members)
        peak = max(task.peak_bytes for task in members)
        print(
            f"| {what} | {seconds:.1f} | {seconds / olive.seconds:.2f} "
            f"| {cpu:.1f} | {cpu / olive.cpu_seconds:.2f} "
            f"| {peak / 1e6:.0f} | {peak / olive.peak_bytes:.3f} |"
        )
    print(
        f"| Olive | {olive.seconds:.1f} | 1 | {olive.cpu_seconds:.1f} | 1 "
        f"| {olive.peak_bytes / 1e6:.0f} | 1 |"
    )
    print(f"\nOlive wrote {written / 1e6:.0f} MB.")
    seconds = sum(task.seconds for task in chosen)
    peak = max(task.peak_bytes for task in chosen)
    quick = seconds <= AIM_SECONDS * olive.seconds
    small = peak <= AIM_BYTES * olive.peak_bytes
    print(f"A quarter of its time: {'reached' if quick else '**missed**'};", end=" ")
    print(f"a tenth of its memory: {'reached' if small else '**missed**'}.")
    return quick and small


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "pipeline",
                        help="gets model, store and containers (10 GB)")  # fmt: skip
    parser.add_argument("--model", type=Path, help="a folder that scale_model.py wrote")
    parser.add_argument("--layers", type=int, default=Sizes.layers)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--target", action="append", help="sm8750 is needed for the comparison")
    parser.add_argument("--olive", type=Path, default=ROOT / ".build" / "olive",
                        help="environment of the peer; made where there is none")  # fmt: skip
    parser.add_argument("--no-olive", action="store_true", help="without the peer")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    work = given.work.absolute()
    model = given.model or work / f"model-{given.layers}-w{given.bits}"
    if not (model / "tokens.npy").exists():
        write(model, Sizes(layers=given.layers), bits=given.bits)
    print(f"before: {machine_text()}")
    whole = build(model, work, given.target or ["sm8750", "cpu"], jobs=given.jobs)
    tasks = tasks_of(work / "store")
    print(f"between: {machine_text()}\n")
    held = print_stages(tasks)
    print(f"\nThe whole build: {whole.seconds:.0f} s, {whole.cpu_seconds:.0f} s of CPU.\n")
    figures: dict[str, Any] = {"build": asdict(whole), "tasks": [asdict(task) for task in tasks]}
    if not given.no_olive:
        folder = work / "olive"
        shutil.rmtree(folder, ignore_errors=True)
        cost = quantize(environment(given.olive.absolute()), model / "model.onnx", folder)
        held = print_peer(tasks, cost, output_bytes(folder)) and held
        figures["olive"] = asdict(cost)
        print(f"\nafter: {machine_text()}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

"""One module name means one thing, so that a path in a traceback is not taken for another."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "planner", "runtime", "stages", "serving", "cli", "operator", "builder")
EVERYWHERE = {"__init__", "__main__", "testing", "errors", "config", "options", "settings"}
"""Each package has its own, and nobody asks which is meant."""
TWINS = {
    "executor": "the protocol, and one for each backend",
    "client": "of a server: S3, the apiserver, the emulator's process",
    "connection": "to the apiserver: a user's, the operator's",
    "server": "answers HTTP: a container's, the dashboard's; and what becomes the first",
    "session": "what is held open for many calls: a slot, HTTP",
    "metrics": "what a process counts, for Prometheus",
    "start": "what is done before anything is served",
    "upkeep": "a store's, by hand; the operator's own, by itself",
    "kind": "a folder for each kind of the operator",
    "kinds": "the table of kinds, and a row of it",
    "reconciler": "a folder for each kind of the operator",
    "status": "of a kind's objects, as written by the operator and as shown",
    "intake": "events of what a kind owns",
    "leases": "of builds and deployments, in a store",
    "helper_jobs": "the questions, who sends them, who answers",
    "sources": "of a build or an adapter: where it comes from",
    "speculation": "in the spec, in a status, in options",
    "lora": "in the spec, and the tasks of it",
    "lora_config": "the vendor's lora_config.yaml, as classes and as a file",
    "adapter": "an adapter, and `genai adapter`",
    "adapters": "of a container: in its files, as inputs of graphs, added to it",
    "adapter_files": "an adapter's two files: a user's folder, a container's",
    "genie_adapters": "adapters as the vendor's runtime finds them, written and listed",
    "model_files": "what lies in a source's folder, and how a builder is given it",
    "model": "of one kind of file or server, said by its folder",
    "objects": "by their names: in a bucket, at the apiserver",
    "blobs": "the protocol, and S3's",
    "cache": "said by its folder: the store's command, the watch's, of adapters, of prefixes",
    "chain": "tasks that one worker runs, and who runs it",
    "build": "GenAIBuild: the kind, its tasks, its view, its command",
    "job": "a Job, from outside and from inside",
    "chat": "a conversation: in the terminal, by HTTP",
    "app": "where commands, or routes, are registered",
    "checks": "what is refused before anything is done",
    "events": "what has happened, told to a machine, a terminal, people",
    "memory": "of this process and this machine",
    "fidelity": "what a container loses: measured, and what follows for the plan",
    "golden": "golden prompts: recorded, and replayed before serving",
    "report": "of a build or a container",
    "replay": "`genai replay`, and what it does",
    "inspection": "`genai inspect`, and what it shows",
    "verification": "`genai verify`, and what it does",
    "remote": "builds on a cluster, for those who are not there",
    "rope": "rotary tables: their frequencies, their cosines",
    "arithmetic": "floats to integers and back, by an encoding",
}
"""Names of several modules -> the one thing that all of them are about."""


def shared(root: Path, rooms: tuple[str, ...] = ROOMS) -> dict[str, list[str]]:
    """Name -> modules of it, where there are several."""
    places: dict[str, list[str]] = defaultdict(list)
    for room in rooms:
        for module in sorted((root / room).rglob("*.py")):
            places[module.stem].append(str(module.relative_to(root)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_module_names_are_shared_by_those_of_one_meaning_alone() -> None:
    found = {n: at for n, at in shared(ROOT).items() if n not in EVERYWHERE and n not in TWINS}
    assert not found, "say in the name what each owns, or add it to TWINS with what both are about"


def test_module_names_that_may_be_shared_are_shared() -> None:
    assert TWINS.keys() <= shared(ROOT).keys()


@pytest.mark.parametrize("names", [("verdicts", "verdicts"), ("verdicts", "fidelity")])
def test_shared_names_both_modules_when_two_have_a_name(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for room, name in zip(("a", "b"), names, strict=True):
        (tmp_path / room / "part").mkdir(parents=True)
        (tmp_path / room / "part" / f"{name}.py").write_text("")
    both = {"verdicts": ["a/part/verdicts.py", "b/part/verdicts.py"]}
    assert shared(tmp_path, ("a", "b")) == (both if len(set(names)) == 1 else {})

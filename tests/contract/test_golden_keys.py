"""Keys and rendered Jobs of builds that use nothing new stay what they are, byte for byte.

`keys.json` holds the key of every task of some builds, `jobs_*.json` the Jobs that the operator
renders for one of them. Code versions stand in the file: raising one is a decision of its own (and
a line in CHANGELOG.md), and shows here as that one number and the keys behind it.

    GENAI_WRITE_GOLDEN=1 python -m pytest tests/contract      # after a change that was meant
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from genai_core.canonical import digest_json
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest, Key, TaskId
from genai_core.operations import OPERATIONS
from genai_core.sources.resolved import ResolvedFile, ResolvedSource
from genai_core.store.address import parse_address
from genai_core.tasks.task_file import Toolchain
from genai_core.wire import RENDERING
from genai_operator.builds.planning.job_requests import Setting, job_request
from genai_operator.builds.sources import SourcePlace
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner, render
from genai_operator.jobs.verdicts import NextAttempt
from genai_operator.targets.build_targets import BuildTarget
from genai_planner.execution.advance import Advice, advance
from genai_planner.execution.events import Event, FoundResult, Look, Missed, WorkLimits
from genai_planner.phases import BuildPlanner, BuildRequest, Exact
from genai_planner.plan import FileRef, Result
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

GOLDEN = Path(__file__).parents[1] / "fixtures" / "contract"
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
}
SPECS: dict[str, dict[str, Any]] = {
    "quantized": {
        "targets": ["sm8750", "sm8650", "cpu"],
        "graphs": {"autoRegression": [1, 32], "contextLengths": [256]},
        "splits": {"count": 3},
        "golden": {"prompts": ["def __init__(self, "], "maxTokens": 16},
        "quantization": {"fidelity": {"tokens": "eval.npy"}},
    },
    "defaults": {"targets": ["sm8750", "cpu"]},
    "nativeKV": {
        "targets": ["sm8750"],
        "graphs": {"autoRegression": [32, 128], "contextLengths": [512, 1024]},
        "compilation": {"nativeKV": True, "options": {"graphs.vtcm_size_in_mb": "8"}},
        "transformation": {"additionalStartPoints": [{"tensor": ".*attn.*"}]},
    },
    "float": {"targets": ["sm8750", "cpu"], "quantization": {"gaps": "Float"}},
    "calibrated": {
        "targets": ["sm8750", "cpu"],
        "quantization": {"gaps": "Calibrate", "calibration": "text.txt", "cpuPrecision": "Int8"},
    },
}


def source_of(name: str) -> dict[str, FileRef]:
    roles = ["model.onnx", "model.data", "config.json", "tokenizer.json"]
    roles += [] if name in {"float", "calibrated"} else ["model.encodings"]
    roles += {"quantized": ["tokens.npy"], "calibrated": ["calibration.txt"]}.get(name, [])
    return {role: FileRef(Digest(sha(role)), 1000) for role in roles}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def spec_of(name: str) -> BuildSpec:
    return BuildSpec.model_validate({"model": {"source": "s3://models/tiny"}} | SPECS[name])


def phase_of(name: str) -> Exact:
    spec = spec_of(name)
    source = source_of(name)
    bits = 8 if "model.encodings" in source else None
    chains = {
        (row.name, row.backend): Toolchain(id=sha(row.name), versions={}) for row in OPERATIONS
    }
    request = BuildRequest(
        spec, tuple(parse_targets(spec.targets)), {MODEL: Source(source, CONFIG, bits)}, chains
    )
    shape = shape_from_config(CONFIG)
    assert shape is not None
    return BuildPlanner(request).exact({MODEL: shape})


def result(look: Look) -> Result:
    """Files made of the key; a fidelity of Int8 is over the budget."""
    names = {
        "ingest": ["model.onnx", "facts.json", "encodings/model.encodings", "measured.json"]
        + [f"weights/layer_{i:03d}.data" for i in range(6)]
        + ["weights/embed.data", "weights/head.data", "assets/tokenizer.json"]
        + ["tokens/tokens.npy", "tokens/calibration.txt"],
    }.get(look.operation, ["file"])
    files = {name: FileRef(Digest(sha(look.key + name)), 10) for name in names}
    return Result(files, {"within": not look.task.endswith("/int8"), "natsPerToken": 1.0})


def advice_of(phase: Exact, answer: Callable[[Sequence[Look]], list[Event]]) -> Advice:
    return advance(
        phase.plan,
        answer,
        lambda: WorkLimits(parallelism=100, memory_bytes=1 << 60),
        sources=phase.request.sources,
        toolchains=phase.request.toolchain_ids,
    )


def nothing_stands(looks: Sequence[Look]) -> list[Event]:
    return [Missed(look.task, "not there") for look in looks]


def ingest_stands(looks: Sequence[Look]) -> list[Event]:
    return [
        FoundResult(look.task, result(look))
        if look.operation == "ingest"
        else Missed(look.task, "no")
        for look in looks
    ]


def everything_stands(looks: Sequence[Look]) -> list[Event]:
    return [FoundResult(look.task, result(look)) for look in looks]


def check(file: str, found: Mapping[TaskId, Any] | Mapping[str, Any]) -> None:
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    path = GOLDEN / file
    if os.environ.get("GENAI_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    held = json.loads(path.read_text(encoding="utf-8"))
    assert found == held


def code_versions() -> dict[str, int]:
    return {f"{row.name}/{row.backend or 'any'}": row.code_version for row in OPERATIONS}


def test_keys_stay_when_a_build_uses_nothing_new() -> None:
    found: dict[str, Any] = {"codeVersions": code_versions()}
    for name in SPECS:
        phase = phase_of(name)
        advice = advice_of(phase, everything_stands)
        assert advice.ended
        found[name] = {
            task.id: {"key": advice.keys.get(task.id), "derivation": phase.derivations[task.id]}
            for task in phase.plan.tasks
        }
    check("keys.json", found)


@pytest.mark.parametrize("run", ["plain", "placed"])
def test_jobs_stay_when_a_build_uses_nothing_new(run: str) -> None:
    runs: dict[str, dict[str, Any]] = {
        "plain": {},
        "placed": {
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "builds", "operator": "Exists"}],
            "priorityClassName": "low",
            "serviceAccountName": "builder",
            "imagePullSecrets": [{"name": "registry"}],
            "queueName": "team",
            "resources": {"limits": {"memory": "4Gi", "cpu": "2"}},
            "ttlSecondsAfterFinished": 60,
        },
    }
    name = "quantized"
    spec = BuildSpec.model_validate(
        {"model": {"source": "s3://models/tiny"}, "run": runs[run]} | SPECS[name]
    )
    phase = phase_of(name)
    targets = [
        BuildTarget(target, "registry/stages@sha256:" + "1" * 64, {}, {"pool": "builds"})
        for target in parse_targets(spec.targets)
    ]
    setting = Setting(
        name="tiny",
        namespace="team-a",
        spec=spec,
        sources={
            MODEL: ResolvedSource(
                digest="sha256:" + "2" * 64,
                files={
                    role: ResolvedFile(path=role, sha256=file.sha256, size=file.size)
                    for role, file in source_of(name).items()
                },
                config=CONFIG,
                weight_bits=8,
            )
        },
        places={MODEL: SourcePlace("s3://models/tiny", bucket=parse_address("s3://models/tiny"))},
        targets=targets,
        toolchains=phase.request.toolchains,
        chain_tasks=8,
    )
    access = StoreAccess("s3://artifacts/team-a?endpoint=http://s3:7070", secret="s3")
    found = {}
    for answer in (nothing_stands, ingest_stands):
        advice = advice_of(phase, answer)
        for start in advice.start:
            request = job_request(setting, phase, advice, start=start, attempt=NextAttempt())
            job = render(request, Owner("tiny", "uid-1"), run=spec.run, access=access)
            # A digest of the rest, so that a Job that never started can be told from another.
            del job["metadata"]["annotations"][RENDERING]
            found[start.task] = {"digest": digest_json(job), "name": job["metadata"]["name"]}
            if start.task in {"ingest", "convert/cpu/int8_1_of_1"}:
                found[start.task]["job"] = job
    assert len(found) > 2
    check(f"jobs_{run}.json", found)


def test_golden_keys_are_all_different_when_tasks_are() -> None:
    held = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))
    for name in SPECS:
        keys = [Key(entry["key"]) for entry in held[name].values() if entry["key"]]
        assert len(keys) == len(set(keys)) > 5

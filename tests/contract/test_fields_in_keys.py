"""Whatever a spec says of the result stands in a key, and what it says of the way there in none."""

from __future__ import annotations

from typing import Any

import pytest
from test_golden_keys import SPECS, advice_of, everything_stands, phase_of

from genai_core.kinds.build import BuildSpec

BASE: dict[str, Any] = {
    "model": {"source": "s3://models/tiny"},
    "targets": ["sm8750", "cpu"],
    "graphs": {"autoRegression": [1, 32], "contextLengths": [256]},
    "splits": {"count": 3},
    "golden": {"prompts": ["def f("]},
}
COUNTS: dict[str, Any] = {
    "model.architecture": "qwen2",
    "targets": ["sm8650", "cpu"],
    "graphs.autoRegression": [1, 16],
    "graphs.contextLengths": [512],
    "graphs.multiContext": True,
    "splits.count": 2,
    "splits.embedding": "Joined",
    "splits.lmHead": "Apart",
    "transformation.mha2sha": False,
    "transformation.additionalStartPoints": [{"tensor": ".*attn.*"}],
    "transformation.options": {"mha2sha.m2s_additional_start_points": ".*attn.*"},
    "conversion.options": {"float_fallback": "true"},
    "quantization.gaps": "Float",
    "quantization.calibration": "text.txt",
    "quantization.cpuPrecision": "Float",
    "quantization.fidelity.budgetNats": 0.5,
    "compilation.weightSharing": False,
    "compilation.nativeKV": True,
    "compilation.options": {"graphs.O": "3"},
    "golden.prompts": ["def g("],
    "golden.maxTokens": 4,
}
"""Field -> another value than BASE's."""
NEEDS: dict[str, dict[str, Any]] = {
    "graphs.multiContext": {"graphs.contextLengths": []},
    "quantization.calibration": {"quantization.gaps": "Calibrate"},
    "compilation.nativeKV": {"graphs.autoRegression": [32]},
}
"""What a value does not go without; the other spec has it too, where it can."""
RUNS: dict[str, Any] = {
    "run.parallelism": 2,
    "run.suspend": True,
    "run.priorityClassName": "low",
    "run.queueName": "team",
    "run.serviceAccountName": "builder",
    "run.imagePullSecrets": [{"name": "registry"}],
    "run.retries": 0,
    "run.activeDeadlineSeconds": 60,
    "run.ttlSecondsAfterFinished": 6,
    "run.scratch": {"size": "2Gi"},
    "run.resources": {"limits": {"memory": "4Gi"}},
    "run.nodeSelector": {"disk": "fast"},
    "run.tolerations": [{"key": "builds", "operator": "Exists"}],
    "run.affinity": {"nodeAffinity": {}},
    "run.topologySpread": False,
    "store": {"name": "other"},
    "model.secretRef": {"name": "read"},
    "model.source": "s3://elsewhere/tiny",
}
OTHERWISE = {
    "model.digest": "the content's digest, which enters as the content does",
    "model.onnx": "the same",
    "model.encodings": "the same",
    "quantization.activationBits": "has one value",
    "quantization.biasBits": "has one value",
    "quantization.fidelity.tokens": "the file's digest enters",
    "children": "tests/planner/test_expand_children.py",
    "lora": "tests/planner/test_expand_lora.py",
    "speculation": "tests/planner/test_expand_draft.py",
    "vision": "tests/planner/test_expand_vision.py",
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = BuildSpec.model_validate(BASE).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    for field, value in changes.items():
        here = spec
        *path, last = field.split(".")
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return spec


def keys_of(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    spec = changed(changes)
    monkeypatch.setitem(SPECS, "changed", spec)
    advice = advice_of(phase_of("changed"), everything_stands)
    assert advice.ended
    return {str(key) for key in advice.keys.values()}


@pytest.mark.parametrize("field", COUNTS)
def test_key_changes_when_a_field_of_the_result_does(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = NEEDS.get(field, {})
    alone = {} if "calibration" in field or "multi" in field else needed
    before = keys_of(alone, monkeypatch)
    assert keys_of({**needed, field: COUNTS[field]}, monkeypatch) - before


@pytest.mark.parametrize("field", RUNS)
def test_key_stays_when_a_field_of_the_run_changes(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys_of({field: RUNS[field]}, monkeypatch) == keys_of({}, monkeypatch)


def leaves(kind: Any, prefix: str = "") -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        inner = field.annotation
        deeper = hasattr(inner, "model_fields") and not prefix.startswith("run")
        found |= leaves(inner, f"{path}.") if deeper and path not in OTHERWISE else {path}
    return found


def test_every_field_of_a_build_is_looked_at() -> None:
    known = [*COUNTS, *RUNS, *OTHERWISE]
    assert [f for f in sorted(leaves(BuildSpec)) if not any(
        f == k or k.startswith(f"{f}.") or f.startswith(f"{k}.") for k in known
    )] == []  # fmt: skip

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_core import canonical
from genai_core.errors import InvalidSpec
from genai_core.kinds.artifact_store import ArtifactStore
from genai_core.kinds.build import BuildSpec, CpuPrecision, GenAIBuild
from genai_core.kinds.definitions.crd import crd
from genai_core.kinds.definitions.defined_kinds import KINDS, DefinedKind
from genai_core.kinds.deployment import GenAIDeployment
from genai_core.kinds.describe import describe_fields, describe_kind
from genai_core.kinds.documents.reading import read_model
from genai_core.kinds.documents.wording import WORDS
from genai_core.kinds.target import GenAITarget
from genai_core.names import Gaps, Precision

SPEC: dict[str, Any] = {"model": {"source": "./m"}, "targets": ["cpu"]}


def spec(**more: object) -> BuildSpec:
    return BuildSpec.model_validate(SPEC | more)


def test_defaults_are_filled_in_and_written_without_nulls() -> None:
    written = spec().canonical()
    assert written["splits"] == {"count": "auto", "embedding": "Auto", "lmHead": "Auto"}
    assert written["transformation"] == {
        "mha2sha": True,
        "additionalStartPoints": [],
        "options": {},
    }
    assert b"null" not in canonical.canonical_json(written)


def test_the_canonical_form_survives_a_round_trip_through_a_server_that_turns_1_0_into_1() -> None:
    one = spec(quantization={"fidelity": {"budgetNats": 1.0}})
    two = spec(quantization={"fidelity": {"budgetNats": 1}})
    assert canonical.digest_json(one.canonical()) == canonical.digest_json(two.canonical())
    assert BuildSpec.model_validate(one.canonical()) == one


@given(st.sampled_from(list(Gaps)), st.data())
def test_enum_values_are_read_in_any_case(gaps: Gaps, data: st.DataObject) -> None:
    text = "".join(c.upper() if data.draw(st.booleans()) else c.lower() for c in gaps.value)
    more = {"calibration": "t.npy"} if gaps is Gaps.CALIBRATE else {}
    assert spec(quantization={"gaps": text, **more}).quantization.gaps is gaps


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"graphs": {"multiContext": True, "contextLengths": [512]}}, "exclude each other"),
        ({"graphs": {"autoRegression": [1, 1]}}, "holds a number twice"),
        ({"quantization": {"gaps": "Calibrate"}}, "needs calibration"),
        ({"quantization": {"calibration": "x.npy"}}, "only with gaps: Calibrate"),
        ({"quantization": {"activationBits": 8}}, "16"),
        ({"quantisation": {}}, "Extra inputs are not permitted"),
        ({"targets": []}, "at least 1 item"),
        ({"targets": ["cpu", "sm8750", "cpu"]}, "it holds cpu twice"),
        ({"run": {"activeDeadlineSeconds": 2**31}}, "less than or equal to 2147483647"),
    ],
)
def test_wrong_specs_are_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**more)


def test_auto_precision_tries_int8_then_int4_then_float() -> None:
    assert CpuPrecision.AUTO.candidates() == (Precision.INT8, Precision.INT4, Precision.FLOAT)
    assert CpuPrecision.INT4.candidates() == (Precision.INT4,)


@pytest.mark.parametrize(
    ("chip", "fine"),
    [
        ({"backend": "htp", "chipset": "SM8750"}, True),
        ({"backend": "Htp", "dspArch": "v79", "socModel": 69}, True),
        ({"backend": "Htp"}, False),
        ({"backend": "Htp", "chipset": "SM8750", "dspArch": "v79", "socModel": 69}, False),
        ({"backend": "Cpu"}, True),
        ({"backend": "Cpu", "chipset": "SM8750"}, False),
    ],
)
def test_a_target_names_its_chip_in_one_way(chip: dict[str, object], *, fine: bool) -> None:
    document = {"metadata": {"name": "t"}, "spec": chip}
    if fine:
        GenAITarget.model_validate(document)
    else:
        with pytest.raises(ValidationError):
            GenAITarget.model_validate(document)


def test_a_store_has_one_identity() -> None:
    def store(**identity: object) -> ArtifactStore:
        return ArtifactStore.model_validate(
            {"metadata": {"name": "s"}, "spec": {"bucket": "models", **identity}}
        )

    store(secretRef={"name": "keys"})
    store(serviceAccountName="builder")
    for wrong in ({}, {"secretRef": {"name": "k"}, "serviceAccountName": "b"}):
        with pytest.raises(ValidationError, match="not both"):
            store(**wrong)


def test_a_deployment_must_be_able_to_move() -> None:
    document = {
        "metadata": {"name": "d"},
        "spec": {"from": {"build": "b", "target": "cpu"}, "server": {"prefixCacheMiB": 64}},
    }
    written = GenAIDeployment.model_validate(document).spec.canonical()
    assert written["server"]["prefixCacheMiB"] == 64
    assert written["from"] == {"build": "b", "target": "cpu"}
    document["spec"] |= {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}  # type: ignore[operator]
    with pytest.raises(ValidationError, match="cannot both be 0"):
        GenAIDeployment.model_validate(document)


def unlimited(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Places of a structural schema that hold as much as anybody likes."""
    bounds = {
        "array": {"maxItems"},
        "string": {"maxLength", "enum"},
        "object": {"properties", "maxProperties"},
    }
    if not bounds.get(schema.get("type", ""), schema.keys()) & schema.keys():
        yield path
    if "x-kubernetes-preserve-unknown-fields" in schema:
        yield path
    if "items" in schema:
        yield from unlimited(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from unlimited(schema["additionalProperties"], f"{path}{{}}")
    for name, member in schema.get("properties", {}).items():
        yield from unlimited(member, f"{path}.{name}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_list_map_and_text_of_a_kind_has_a_limit(kind: DefinedKind) -> None:
    members = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        assert list(unlimited(members[part], part)) == []


def parts(
    node: dict[str, Any], path: str, times: int = 1
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Every schema below one: its path, itself, how many of it one object may hold."""
    yield path, node, times
    for name, member in node.get("properties", {}).items():
        yield from parts(member, f"{path}.{name}", times)
    if "items" in node:
        yield from parts(node["items"], f"{path}[]", times * node["maxItems"])
    if "additionalProperties" in node:
        yield from parts(node["additionalProperties"], f"{path}{{}}", times * node["maxProperties"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_pattern_and_key_of_a_spec_is_said_in_words(kind: DefinedKind) -> None:
    spec = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    cost = 0.0
    for path, node, times in parts(spec, "spec"):
        rules = {rule["rule"]: rule["message"] for rule in node.get("x-kubernetes-validations", [])}
        if "pattern" in node:
            assert node["pattern"] in WORDS, f"{path} needs words in kinds/documents/wording.py"
            assert "'" not in node["pattern"], "it stands in a quoted text of CEL"
            said = rules[f"self.matches(r'{node['pattern']}')"]
            assert said == f"expected {WORDS[node['pattern']]}"
            cost += times * node["maxLength"] / 10 * len(node["pattern"]) / 4
        if "additionalProperties" in node:
            assert rules["self.all(key, size(key) <= 256)"] == "a key has at most 256 characters"
            cost += times * node["maxProperties"] * 10
    assert cost < 2_000_000, "an apiserver takes 10 million a rule, 100 million a CRD"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"store": {"name": "Team_A"}}, "lower-case letters, digits, '-' and '.'"),
        ({"run": {"resources": {"limits": {"memory": "8 GB"}}}}, "a quantity such as 20Gi or 500m"),
        ({"lora": {"adapters": [{"name": "-", "source": "a"}]}}, "a letter or digit at both ends"),
        ({"model": {"source": "m", "digest": "sha256:AB"}}, "64 lower-case hex digits"),
        ({"compilation": {"options": {"k" * 257: "1"}}}, "at most 256 characters"),
    ],
)
def test_a_laptop_says_in_words_what_a_field_takes(change: dict[str, Any], words: str) -> None:
    value = {"model": {"source": "m"}, "targets": ["cpu"], **change}
    with pytest.raises(InvalidSpec) as raised:
        read_model(BuildSpec, value, where="spec")
    assert words in str(raised.value)
    assert "^" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_kubectl_explain_has_words_for_every_field(kind: DefinedKind) -> None:
    """Also words that stand alone: explain shows a field without its parent."""

    def visit(node: dict[str, Any], path: str) -> None:
        for name, member in node.get("properties", {}).items():
            text = member.get("description", "")
            assert len(text.split()) >= 2, f"{path}.{name}: {text!r}"
            assert not text.startswith("None"), f"{path}.{name}: {text!r} is Python"
            visit(member, f"{path}.{name}")
            visit(member.get("items", {}), f"{path}.{name}[]")

    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert len(schema["description"].split()) > 3
    for part in ("spec", "status"):
        visit(schema["properties"][part], part)


def test_descriptions_come_from_the_source() -> None:
    text = "A quantized model and the targets that it is to be built for."
    assert describe_kind(GenAIBuild) == text
    assert describe_fields(BuildSpec)["targets"].startswith("Names of GenAITargets")

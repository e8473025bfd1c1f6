"""Reading specs: each mistake is named with its file, line, field and remedy."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec, GenAIBuild
from genai_core.kinds.deployment import GenAIDeployment
from genai_core.kinds.documents.problems import distance, field_names, nearest, show_path
from genai_core.kinds.documents.reading import (
    read_build,
    read_model,
    read_object,
    read_objects,
    read_served,
)

HEAD = """\
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata:
  name: tiny
"""
BUILD = f"""{HEAD}spec:
  model: {{source: ./model}}
  targets: [sm8750, cpu]
"""


def read(folder: Path, text: str, *, name: str | None = None) -> GenAIBuild:
    path = folder / "b.yaml"
    path.write_text(text, encoding="utf-8")
    return read_build(path, name=name)


def refused(folder: Path, text: str) -> list[str]:
    """All problems, without the folder's name."""
    with pytest.raises(InvalidSpec) as caught:
        read(folder, text)
    error = caught.value
    assert error.exit_code == 2
    lines = [str(error), *getattr(error, "__notes__", [])]
    assert all("\n" not in line for line in lines)
    return [line.replace(f"{folder}/", "") for line in lines]


@pytest.mark.parametrize("source", ["a\\0b", "s3://b\\x07/m", "\\n"])
def test_a_source_is_refused_when_it_holds_a_control_character(source: str, tmp_path: Path) -> None:
    text = BUILD.replace("./model", f'"{source}"')
    with pytest.raises(InvalidSpec, match="without control characters") as raised:
        read(tmp_path, text)
    assert "spec.model.source" in raised.value.where


def test_a_source_is_refused_when_its_links_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("model")
    with pytest.raises(InvalidSpec, match="lead in a circle"):
        read(tmp_path, BUILD)


def test_a_build_is_read_and_its_source_is_beside_the_file(tmp_path: Path) -> None:
    build = read(tmp_path, BUILD)
    assert build.metadata.name == "tiny"
    assert build.spec.targets == ["sm8750", "cpu"]
    assert build.spec.model.source == str(tmp_path / "model")


@pytest.mark.parametrize("source", ["s3://bucket/prefix", "https://example.com/m.tar.gz"])
def test_addresses_stay_as_they_are(tmp_path: Path, source: str) -> None:
    assert read(tmp_path, BUILD.replace("./model", source)).spec.model.source == source


MISTAKES = {
    "misspelt field": (
        "  quantisation: {}\n",
        "b.yaml:8: spec.quantisation: unknown field; did you mean quantization?",
    ),
    "field in the wrong place": (
        "  activationBits: 16\n",
        (
            "b.yaml:8: spec.activationBits: unknown field; did you mean "
            "spec.quantization.activationBits?"
        ),
    ),
    "python's spelling of a field": (
        "  graphs:\n    auto_regression: [1]\n",
        "b.yaml:9: spec.graphs.auto_regression: unknown field; did you mean autoRegression?",
    ),
    "nothing near": (
        "  golden: {xyzzy: 1}\n",
        "b.yaml:8: spec.golden.xyzzy: unknown field; fields here: prompts, maxTokens",
    ),
    "enum value": (
        "  quantization: {gaps: foat}\n",
        (
            'b.yaml:8: spec.quantization.gaps: expected Error, Float or Calibrate, got "foat"; '
            "did you mean Float?"
        ),
    ),
    "only value": (
        "  quantization: {activationBits: 8}\n",
        "b.yaml:8: spec.quantization.activationBits: expected 16, got 8",
    ),
    "text for a number": (
        '  splits: {count: "3"}\n',
        'b.yaml:8: spec.splits.count: expected a whole number or auto, got "3"',
    ),
    "number below its limit": (
        "  golden: {maxTokens: 0}\n",
        "b.yaml:8: spec.golden.maxTokens: expected at least 1, got 0",
    ),
    "number for text": (
        "  compilation:\n    options:\n      graphs.vtcm_size_in_mb: 8\n",
        (
            'b.yaml:10: spec.compilation.options["graphs.vtcm_size_in_mb"]: expected text, got 8; '
            'put it in quotes: "8"'
        ),
    ),
    "truth for a number": (
        "  graphs: {autoRegression: [1, true]}\n",
        "b.yaml:8: spec.graphs.autoRegression[1]: expected a whole number, got true",
    ),
    "mapping for a list": (
        "  graphs: {autoRegression: {}}\n",
        "b.yaml:8: spec.graphs.autoRegression: expected a list, got an empty mapping",
    ),
    "text for a mapping": (
        "  golden: hello\n",
        'b.yaml:8: spec.golden: expected a mapping, got "hello"',
    ),
    "combination": (
        "  graphs:\n    multiContext: true\n    contextLengths: [512]\n",
        "b.yaml:8: spec.graphs: multiContext and contextLengths exclude each other: keep one",
    ),
    "key twice": (
        "  targets: [cpu]\n",
        "b.yaml:8: targets stands twice (first in line 7); keep one of them",
    ),
    "tab": (
        "\tsplits: {count: 2}\n",
        "b.yaml:8:1: a tab where YAML wants spaces; indent with spaces",
    ),
    "open bracket": (
        "  graphs: [1\n  splits: {count: 3}\n",
        "b.yaml:9:9: expected ',' or ']', but got ':' (while parsing a flow sequence in line 8)",
    ),
    "second colon": (
        "  store: a: b\n",
        (
            "b.yaml:8:11: a second ': ' on this line, or a wrong indentation; put the text in "
            "quotes, or indent it like its neighbours"
        ),
    ),
    "tag": (
        "  store: !!python/name:os.system\n",
        "b.yaml:8: the tag tag:yaml.org,2002:python/name:os.system has no meaning here",
    ),
    "number as a field": (
        "  8: x\n",
        "b.yaml:8: the name of a field must be text, not 8; put it in quotes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_line_field_and_remedy(tmp_path: Path, mistake: str) -> None:
    added, message = MISTAKES[mistake]
    assert refused(tmp_path, BUILD + added) == [message]


def test_every_problem_is_reported_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = BUILD.replace("name: tiny", "name: Tiny") + "  splits: {count: 0}\n  lora: {}\n"
    lines = [line.split(":")[1] for line in refused(tmp_path, text)]
    assert lines == ["4", "8", "9"]


def test_a_missing_field_is_named_where_it_belongs(tmp_path: Path) -> None:
    text = f"{HEAD}spec:\n  model: {{onnx: a.onnx}}\n"
    assert refused(tmp_path, text) == [
        "b.yaml:5: spec.targets: is missing; add it",
        "b.yaml:6: spec.model.source: is missing; add it",
    ]


def test_fields_without_a_value_count_as_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, BUILD + "  splits:\n  golden: {maxTokens: ~}\n").spec == (
        read(tmp_path, BUILD).spec
    )


def test_values_mean_what_they_mean_to_kubectl(tmp_path: Path) -> None:
    more = (
        "  transformation: {mha2sha: no}\n"
        "  quantization: {gaps: FLOAT, fidelity: {budgetNats: 1e-2}}\n"
        "  splits: {count: Auto, embedding: apart}\n"
        "  graphs: {contextLengths: [0x100, 4_096]}\n"
    )
    spec = read(tmp_path, BUILD.replace("name: tiny", "name: 2024-01-01") + more).spec
    assert spec.transformation.mha2sha is False
    assert spec.quantization.gaps == "Float"
    assert spec.quantization.fidelity.budget_nats == 0.01
    assert (spec.splits.count, spec.splits.embedding) == ("auto", "Apart")
    assert spec.graphs.context_lengths == [256, 4096]


def test_numbers_with_a_leading_zero_are_nobody_s_octal(tmp_path: Path) -> None:
    assert refused(tmp_path, BUILD + "  golden: {maxTokens: 010}\n") == [
        'b.yaml:8: spec.golden.maxTokens: expected a whole number, got "010"'
    ]


def test_the_build_is_found_among_other_documents(tmp_path: Path) -> None:
    other = "apiVersion: v1\nkind: ConfigMap\ndata: {a: b}\n"
    assert read(tmp_path, f"---\n{other}---\n{BUILD}---\n").metadata.name == "tiny"
    assert refused(tmp_path, other) == ["b.yaml: it holds no GenAIBuild; name another file"]


def test_lines_count_from_the_file_s_start_in_later_documents(tmp_path: Path) -> None:
    text = f"# a comment\n---\n{BUILD}---\n{BUILD}  spilts: {{}}\n"
    assert refused(tmp_path, text) == [
        "b.yaml:18: spec.spilts: unknown field; did you mean splits?"
    ]


def test_several_builds_need_a_name(tmp_path: Path) -> None:
    text = f"{BUILD}---\n{BUILD.replace('tiny', 'big')}"
    assert refused(tmp_path, text) == [
        "b.yaml: it holds the builds tiny, big; choose one with --name"
    ]
    assert read(tmp_path, text, name="big").metadata.name == "big"


def test_a_list_as_kubectl_prints_it_is_unpacked(tmp_path: Path) -> None:
    indented = "".join(f"  {line}\n" for line in BUILD.splitlines())
    text = f"apiVersion: v1\nkind: List\nitems:\n-{indented[1:]}"
    assert read(tmp_path, text).metadata.name == "tiny"
    assert refused(tmp_path, f"{text}    lorry: {{}}\n")[0].startswith(
        "b.yaml:11: spec.lorry: unknown"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "GenAIBuild",
            "GenAiBuild",
            "b.yaml:2: kind: GenAiBuild is not known; did you mean GenAIBuild?",
        ),
        (
            "v1alpha1",
            "v1",
            (
                "b.yaml:1: apiVersion: genai-operator.dev/v1 is not known; "
                "this version reads genai-operator.dev/v1alpha1"
            ),
        ),
        (
            "apiVersion: genai-operator.dev/v1alpha1\n",
            "",
            "b.yaml:1: apiVersion: is missing; add apiVersion: genai-operator.dev/v1alpha1",
        ),
        (
            "kind: GenAIBuild\n",
            "",
            (
                "b.yaml:1: kind: is missing; use GenAIBuild, GenAITarget, "
                "ArtifactStore, GenAIDeployment"
            ),
        ),
    ],
)
def test_kind_and_version_are_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert refused(tmp_path, BUILD.replace(old, new)) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "b.yaml: it is empty; name a file with a GenAIBuild"),
        ("- 1\n", "b.yaml:1: expected a mapping with apiVersion and kind"),
        (
            "a: 1\n",
            "b.yaml:1: it has no apiVersion and kind; add genai-operator.dev/v1alpha1, GenAIBuild",
        ),
        (
            "a: \x01\n",
            (
                "b.yaml: it is not text that YAML can hold (UTF-8 without control "
                "characters); is this the right file?"
            ),
        ),
        ("a: &a [*a]\n", "b.yaml:1: an alias stands inside what it stands for"),
    ],
)
def test_files_that_are_no_specs_are_named(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == [message]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"none\.yaml: no such file or directory"):
        read_build(tmp_path / "none.yaml")


def test_aliases_cannot_grow_without_bound(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (problem,) = refused(tmp_path, "\n".join(rows))
    assert "its aliases grow into too large a document" in problem


def test_merge_keys_fill_in_what_is_not_given(tmp_path: Path) -> None:
    text = BUILD + "  golden: &g {maxTokens: 4, prompts: [a]}\n"
    other = text.replace("tiny", "big").replace(
        "&g {maxTokens: 4,", "{<<: {maxTokens: 9}, maxTokens: 5,"
    )
    assert read(tmp_path, other).spec.golden.max_tokens == 5
    again = text.replace("&g {maxTokens: 4,", "{<<: {maxTokens: 9},")
    assert read(tmp_path, again).spec.golden.max_tokens == 9


def test_an_object_of_the_apiserver_is_read_without_a_file() -> None:
    value: dict[str, Any] = {
        "apiVersion": "genai-operator.dev/v1alpha1",
        "kind": "GenAIDeployment",
        "metadata": {"name": "d", "managedFields": [], "resourceVersion": "7"},
        "spec": {"from": {"build": "tiny", "target": "cpu"}},
        "status": {"readyReplicas": 1},
    }
    assert isinstance(read_object(value), GenAIDeployment)
    value["spec"]["from"]["bild"] = "x"
    with pytest.raises(
        InvalidSpec, match=r"^spec\.from\.bild: unknown field; did you mean build\?"
    ):
        read_object(value)


def test_a_part_is_named_from_the_place_it_is_put() -> None:
    with pytest.raises(InvalidSpec, match=r"^spec\.targets: is missing"):
        read_model(BuildSpec, {"model": {"source": "s3://b/p"}}, where="spec")


def test_all_objects_of_a_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    target = "apiVersion: genai-operator.dev/v1alpha1\nkind: GenAITarget\n"
    path.write_text(
        f"{target}metadata: {{name: t}}\nspec: {{backend: CPU}}\n---\n{BUILD}", encoding="utf-8"
    )
    assert [type(item).__name__ for item in read_objects(path)] == ["GenAITarget", "GenAIBuild"]


def test_paths_are_shown_as_people_write_them() -> None:
    assert show_path(("spec", "targets", 0)) == "spec.targets[0]"
    assert show_path(("options", "graphs.O")) == 'options["graphs.O"]'


WORDS = st.text(string.ascii_lowercase, max_size=6)


@given(WORDS, WORDS)
def test_distance_is_symmetric_and_zero_only_for_equals(one: str, other: str) -> None:
    assert distance(one, other) == distance(other, one)
    assert (distance(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance(one, other) <= max(len(one), len(other))


def one_edit(draw: st.DrawFn, word: str) -> str:
    letters = st.sampled_from(string.ascii_letters)
    at = draw(st.integers(0, len(word) - 1))
    return {
        "insert": lambda: word[:at] + draw(letters) + word[at:],
        "delete": lambda: word[:at] + word[at + 1 :],
        "replace": lambda: word[:at] + draw(letters) + word[at + 1 :],
        "swap": lambda: word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
    }[draw(st.sampled_from(["insert", "delete", "replace", "swap"]))]()


def paths_of(model: Any, at: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every field of a spec, found independently: from the JSON schema."""
    schema = model.model_json_schema(by_alias=True)

    def visit(node: dict[str, Any], here: tuple[str, ...]) -> list[tuple[str, ...]]:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        found = []
        for name, inner in node.get("properties", {}).items():
            found += [(*here, name), *visit(inner, (*here, name))]
        return found

    return visit(schema, at)


FIELDS = paths_of(BuildSpec, ("spec",))


@st.composite
def misspellings(draw: st.DrawFn) -> tuple[tuple[str, ...], str]:
    path = draw(st.sampled_from(FIELDS))
    return path, one_edit(draw, path[-1])


@settings(max_examples=300, deadline=None)
@given(misspellings())
def test_any_field_misspelt_by_one_edit_is_recognised(case: tuple[tuple[str, ...], str]) -> None:
    path, wrong = case
    siblings = {at[-1] for at in FIELDS if at[:-1] == path[:-1]}
    assume(wrong and wrong not in siblings)
    value: dict[str, Any] = {"model": {"source": "s3://b/p"}, "targets": ["cpu"]}
    here = value
    for part in path[1:-1]:
        here = here.setdefault(part, {})
    here[wrong] = 1
    with pytest.raises(InvalidSpec) as caught:
        read_model(BuildSpec, value, where="spec")
    said = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    where = f"{'.'.join((*path[:-1], wrong))}: unknown field; did you mean "
    assert f"{where}{path[-1]}?" in said


def test_nearest_stays_silent_where_nothing_is_near() -> None:
    assert nearest("audio", field_names(BuildSpec)) is None
    assert nearest("PROMPTS", ["prompts", "maxTokens"]) == "prompts"


def test_fields_of_a_newer_version_are_no_fault_of_what_an_apiserver_serves() -> None:
    spec: dict[str, Any] = {
        "model": {"source": "s3://m/x", "colour": "red"},
        "targets": ["cpu"],
        "run": {"shape": "round", "tolerations": [{"key": "a", "operator": "Exists", "new": 1}]},
        "further": {"a": {"b": 1}},
    }
    read = read_served(BuildSpec, spec, where="spec")
    assert read.run.tolerations[0].key == "a"
    assert spec["run"]["shape"] == "round", "the object itself is left as it was"
    with pytest.raises(InvalidSpec):
        read_model(BuildSpec, spec, where="spec")
    with pytest.raises(InvalidSpec, match="targets"):
        read_served(BuildSpec, spec | {"targets": 5}, where="spec")

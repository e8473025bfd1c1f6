"""Command lines to builds: files, folders, options on top of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from genai_cli.build.spec_flags import SpecFlags
from genai_cli.build.spec_source import as_yaml, build_of
from genai_cli.testing import Program
from genai_core.errors import BadInput, InvalidSpec
from genai_core.kinds.documents.reading import read_build

FILE = """\
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: tiny}
spec:
  model: {source: ./model}
  targets: [sm8750, cpu]
  graphs: {autoRegression: [1, 32], contextLengths: [256]}
  compilation: {options: {graphs.O: "3"}}
"""


@pytest.fixture
def flags(tmp_path: Path) -> Any:
    path = tmp_path / "b.yaml"
    path.write_text(FILE)
    return lambda **given: SpecFlags(file=str(path), model=None, **given)


@pytest.mark.parametrize("value", ["2", "'2'", '"2"'])
def test_the_vendors_options_are_text_whatever_they_look_like(flags: Any, value: str) -> None:
    spec = build_of(flags(fields=[f"compilation.options.graphs.O={value}"])).spec
    assert spec.compilation.options == {"graphs.O": "2"}


def test_a_folder_and_targets_are_a_build(tmp_path: Path) -> None:
    folder = tmp_path / "My Model_v2"
    folder.mkdir()
    build = build_of(SpecFlags(file=None, model=folder, target=["sm8750", "cpu"]))
    assert build.metadata.name == "my-model-v2"
    assert build.spec.model.source == str(folder)
    assert build.spec.targets == ["sm8750", "cpu"]
    assert build.spec.graphs.auto_regression == []


def test_files_of_the_model_are_named_in_its_folder_or_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.onnx", "b.onnx", "b.encodings"):
        (folder / name).touch()
    (tmp_path / "other.onnx").touch()
    monkeypatch.chdir(tmp_path)

    def built(onnx: str) -> Any:
        flags = SpecFlags(
            file=None, model=Path("model"), target=["cpu"], onnx=onnx, encodings="b.encodings"
        )
        return build_of(flags).spec.model

    for onnx in ("b.onnx", "model/b.onnx", str(folder / "b.onnx")):
        assert (built(onnx).onnx, built(onnx).encodings) == ("b.onnx", "b.encodings")
    assert built("not-there.onnx").onnx == "not-there.onnx"  # named when the model is read
    for outside in ("other.onnx", "model/../other.onnx"):
        with pytest.raises(InvalidSpec, match=r"^--onnx .*other\.onnx: it is not in the model's"):
            built(outside)
    with pytest.raises(InvalidSpec, match=r"--onnx"):
        built("../not-there.onnx")


def test_options_win_over_the_file(flags: Any) -> None:
    spec = build_of(
        flags(
            target=["cpu"],
            ar=["1,64", "128"],
            cl=["512"],
            splits="auto",
            gaps="float",
            precision="INT8",
            fields=[
                "golden.maxTokens=8",
                "compilation.options.graphs.O='1'",
                "golden.prompts=[a, b]",
            ],
        )
    ).spec
    assert spec.targets == ["cpu"]
    assert spec.graphs.auto_regression == [1, 64, 128]
    assert spec.graphs.context_lengths == [512]
    assert spec.splits.count == "auto"
    assert (spec.quantization.gaps, spec.quantization.cpu_precision) == ("Float", "Int8")
    assert (spec.golden.max_tokens, spec.golden.prompts) == (8, ["a", "b"])
    assert spec.compilation.options == {"graphs.O": "1"}


def test_a_chip_by_numbers_is_one_target(flags: Any) -> None:
    target = "dsp_arch:v79;soc_model:69"
    assert build_of(flags(target=[target, "cpu"])).spec.targets == [target, "cpu"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"ar": ["1,x"]},
            r"^--ar \(spec\.graphs\.autoRegression\[1\]\): expected a whole number, ",
        ),
        ({"splits": "0"}, r"^--splits \(spec\.splits\.count\): expected at least 1 or auto, got 0"),
        ({"gaps": "foat"}, r"^--gaps \(spec\.quantization\.gaps\): .*; did you mean Float\?"),
        ({"fields": ["golden"]}, r"^--set: 'golden' is not FIELD=VALUE"),
        ({"fields": ["goldn.maxTokens=1"]}, r"^spec\.goldn: unknown field; did you mean golden\?"),
        ({"fields": ["targets.x=1"]}, r"^--set targets: it has no fields"),
        ({"fields": ["golden.maxTokens=[1"]}, r"^--set golden\.maxTokens:1:3: "),
    ],
)
def test_a_wrong_option_is_named(flags: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        build_of(flags(**given))


def test_a_folder_needs_a_target(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidSpec, match=r"^--target: no target is given; add e\.g\. --target cpu"
    ):
        build_of(SpecFlags(file=None, model=tmp_path))


def test_a_yaml_file_without_f_is_recognised(flags: Any, tmp_path: Path) -> None:
    del flags
    with pytest.raises(BadInput, match="it is a file; write -f "):
        build_of(SpecFlags(file=None, model=tmp_path / "b.yaml", target=["cpu"]))


def test_the_printed_spec_means_the_same_build(flags: Any, tmp_path: Path) -> None:
    build = build_of(flags(ar=["1,64"], gaps="float"))
    text = as_yaml(build, folder=tmp_path)
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert read_build(path).spec == build.spec
    document = yaml.safe_load(text)
    assert document["spec"]["model"] == {"source": "./model"}
    assert "run" not in document["spec"], "fields at their defaults are left out"


def test_print_spec_needs_no_model_and_builds_nothing(genai: Program, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(FILE)
    ran = genai("build", "-f", "b.yaml", "--cl", "512", "--print-spec")
    assert (ran.code, ran.err) == (0, "")
    assert yaml.safe_load(ran.out)["spec"]["graphs"]["contextLengths"] == [512]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.yaml"]


def test_a_spec_can_come_through_standard_input(genai: Program, tmp_path: Path) -> None:
    ran = genai("build", "-f", "-", "--print-spec", stdin=FILE)
    assert yaml.safe_load(ran.out)["metadata"] == {"name": "tiny"}
    ran = genai("build", "-f", "-", "--print-spec", stdin=FILE + "  goldn: {}\n")
    assert ran.errors == [
        "error: standard input:9: spec.goldn: unknown field; did you mean golden?"
    ]

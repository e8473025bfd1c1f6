"""attach_model_for_arn: a model of its own for one AR, as spec.children says it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from genai_builder.gen_ai_api.builders.attached_model import AttachedModel
from genai_builder.gen_ai_api.builders.gen_ai_builder import GenAIBuilder
from genai_builder.gen_ai_api.gen_ai_builder_factory import GenAIBuilderFactory
from genai_cli.build.local_build import make_containers
from genai_core.errors import BadModel, InvalidSpec
from genai_core.kinds.documents.reading import read_build_text

MODEL = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, a copy of it, and one whose weights are others."""
    root = tmp_path_factory.mktemp("attached")
    for name in ("model", "same", "other"):
        shutil.copytree(MODEL, root / name)
    shutil.copyfile(MODEL / "model.onnx", root / "other" / "decode.onnx")
    (root / "other" / "model.onnx").unlink()
    changed = onnx.load(root / "other" / "decode.onnx")  # noqa: TID251 - half a megabyte
    for tensor in changed.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.5), tensor.name))
    onnx.save(changed, root / "other" / "decode.onnx")
    return root


def test_attach_model_for_arn_says_what_spec_children_says(sources: Path) -> None:
    builder = GenAIBuilderFactory.create(sources / "model", "HTP")
    builder.set_targets(["chipset:SM8750"])
    builder.set_transformation_options({"arn_cl_options.auto_regression_number": [1, 32, 64]})
    builder.attach_model_for_arn(arn=32, model_path=sources / "same")
    decode = builder.attach_model_for_arn(
        1, sources / "other" / "decode.onnx", encodings_path="config.json", name="decode"
    )
    decode.set_transformation_options({"mha2sha.m2s_additional_start_points": [".*attn.*"]})
    decode.set_conversion_options({"float_fallback": "True", "act_precision": 16})
    decode.set_compilation_options({"graphs.vtcm_size_in_mb": 8})
    decode.set_compilation_options({"graphs": {"vtcm_size_in_mb": 4}})
    assert builder.to_spec()["spec"]["children"] == [
        {"arn": 32, "source": str(sources / "same")},
        {
            "arn": 1, "source": str(sources / "other"), "name": "decode", "onnx": "decode.onnx",
            "encodings": "config.json", "gaps": "Float",
            "transformation": {"additionalStartPoints": [{"tensor": ".*attn.*"}]},
            "compilation": {"options": {"graphs.vtcm_size_in_mb": "4"}},
        },
    ]  # fmt: skip
    decode.encodings_path = None
    assert "encodings" not in builder.to_spec()["spec"]["children"][1]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"model_path": "nowhere.onnx"}, BadModel, "no such file"),
        ({"arn": "one"}, InvalidSpec, "expected a whole number"),
        ({"arn": 0}, InvalidSpec, "arn"),
        ({"name": "Two Words"}, InvalidSpec, "name"),
        ({"arn": 32}, InvalidSpec, "AR 32 has a model of its own already"),
        ({"encodings_path": "/etc/passwd"}, InvalidSpec, "not in the model's folder"),
    ],
)
def test_attach_model_for_arn_refuses_and_attaches_nothing_when_a_value_is_wrong(
    sources: Path, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    builder = GenAIBuilderFactory.create(sources / "model", "HTP")
    builder.set_targets(["chipset:SM8750"])
    builder.attach_model_for_arn(32, sources / "same")
    before = builder.to_spec()
    with pytest.raises(kind, match=said):
        builder.attach_model_for_arn(**{"arn": 1, "model_path": sources / "same", **given})
    assert builder.to_spec() == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (lambda one: one.set_transformation_options({"split_model.num_splits": 2}),
         r"spec\.splits\.count is of the whole build, not of the model attached for AR 1"),
        (lambda one: one.set_compilation_options({"context.weight_sharing_enabled": False}),
         r"compilation\.weightSharing is of the whole binary"),
        (lambda one: one.set_compilation_options({"graphs.dlbc": 1}), r"graphs\.dlbc is not"),
        (lambda one: one.set_conversion_options({"act_precision": 8}), "activations have 16 bits"),
    ],
)  # fmt: skip
def test_an_attached_model_refuses_what_is_of_the_whole_build(
    sources: Path, setting: Callable[[AttachedModel], None], said: str
) -> None:
    builder = GenAIBuilderFactory.create(sources / "model", "HTP")
    attached = builder.attach_model_for_arn(1, sources / "same")
    with pytest.raises(InvalidSpec, match=said):
        setting(attached)
    with pytest.raises(AttributeError, match="native_kv"):
        attached.native_kv = True  # type: ignore[attr-defined]
    assert attached.to_child() == {"arn": 1, "source": str(sources / "same")}


def test_build_runs_the_tasks_of_the_yaml_and_refuses_as_it_does_when_a_child_is_attached(
    sources: Path, tmp_path: Path
) -> None:
    """The same keys: what the builder has made is all cached for the YAML."""
    store = tmp_path / "store"

    def asked(model: Path) -> GenAIBuilder:
        builder = GenAIBuilderFactory.create(sources / "model", "CPU", cache_root=store)
        builder.set_conversion_options({"float_fallback": True})
        builder.set_transformation_options({"arn_cl_options.auto_regression_number": [1, 8]})
        builder.attach_model_for_arn(1, model, name="decode")
        return builder

    builder = asked(sources / "same")
    container = builder.build()
    text = yaml.safe_dump(builder.to_spec()).encode()
    build = read_build_text(text, where="build.yaml", folder=tmp_path)
    made = make_containers(build, store=str(store), read_from=(), output=tmp_path / "out", jobs=1)
    made.raise_failure()
    assert made.result.run == 0
    assert made.containers["cpu"].revision == container.revision
    with pytest.raises(InvalidSpec, match="the weights of child decode are not the model's"):
        asked(sources / "other").build()

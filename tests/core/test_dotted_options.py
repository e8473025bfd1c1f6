"""The vendor's dotted options in a spec: fields of the spec, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genai_core.kinds.build import BuildSpec
from genai_core.kinds.dotted_options import CONVERSION, TRANSFORMATION

DOCS = Path(__file__).parents[2] / "docs" / "vendor-options.md"
PLAIN: dict[str, Any] = {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"]}


def spec_of(
    transformation: dict[str, str] | None = None,
    conversion: dict[str, str] | None = None,
    **fields: Any,
) -> BuildSpec:
    sections = {"transformation": transformation, "conversion": conversion}
    given = {name: {"options": options} for name, options in sections.items() if options}
    return BuildSpec.model_validate({**PLAIN, **given, **fields})


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"split_model.num_splits": "3"}, {"splits": {"count": 3}}),
        (
            {"split_model.split_embedding": "True", "split_model.split_lm_head": "false"},
            {"splits": {"embedding": "Apart", "lmHead": "Joined"}},
        ),
        (
            {
                "arn_cl_options.context_length": "[512, 1024]",
                "arn_cl_options.auto_regression_number": "1,32",
            },
            {"graphs": {"contextLengths": [512, 1024], "autoRegression": [1, 32]}},
        ),
        (
            {"mha2sha.m2s_additional_start_points": '["a.*", "[ab]"]'},
            {"transformation": {"additionalStartPoints": [{"tensor": "a.*"}, {"tensor": "[ab]"}]}},
        ),
        (
            {"mha2sha.m2s_additional_start_points": "[ab].*"},
            {"transformation": {"additionalStartPoints": [{"tensor": "[ab].*"}]}},
        ),
        ({"split_model.skip_verification": "False"}, {}),
    ],
)  # fmt: skip
def test_transformation_options_are_fields_of_the_spec(
    options: dict[str, str], fields: dict[str, Any]
) -> None:
    wanted = BuildSpec.model_validate({**PLAIN, **fields})
    found = spec_of(options)
    bare = found.transformation.model_copy(update={"options": {}})
    assert found.model_copy(update={"transformation": bare}) == wanted
    assert BuildSpec.model_validate(found.canonical()) == found, "written and read again"


def test_conversion_options_are_fields_of_the_spec() -> None:
    shown = {"act_bitwidth": "16", "bias_bitwidth": "32", "weights_bitwidth": "None"}
    assert spec_of(conversion=shown).quantization == BuildSpec.model_validate(PLAIN).quantization
    assert spec_of(conversion={"float_fallback": "True"}).quantization.gaps == "Float"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"transformation": {"split_model.splits": "3"}},
            r"options\.split_model\.splits: unknown; did you mean split_model\.num_splits\?",
        ),
        (
            {"conversion": {"x": "1"}},
            r"conversion\.options\.x: unknown; known are float_fallback, ",
        ),
        (
            {"transformation": {"adapt_moe": "True"}},
            r"transformation\.options\.adapt_moe: not supported: models of experts",
        ),
        (
            {"transformation": {"split_model.num_splits": "many"}},
            r"transformation\.options\.split_model\.num_splits: expected a whole number",
        ),
        (
            {"conversion": {"act_bitwidth": "8"}},
            r"conversion\.options\.act_bitwidth: '8' is not supported: activations have 16 bits",
        ),
        ({"conversion": {"weights_bitwidth": "4"}}, "weights have the bits that the encodings say"),
        (
            {"transformation": {"split_model.num_splits": "3"}, "splits": {"count": 2}},
            r"splits\.count is given twice, as 2 and, by an option, as 3: keep one of them",
        ),
        (
            {"conversion": {"float_fallback": "True"}, "quantization": {"gaps": "Calibrate"}},
            r"quantization\.gaps is given twice, as Calibrate and, by an option, as Float",
        ),
    ],
)
def test_an_option_is_refused_by_name(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(**sections)


def test_a_field_and_an_option_may_say_the_same() -> None:
    found = spec_of({"split_model.split_lm_head": "True"}, splits={"lmHead": "apart"})
    assert found.splits.lm_head == "Apart"


@pytest.mark.parametrize("section", ["transformation", "conversion"])
@pytest.mark.parametrize("options", ["text", ["a"], {"a": 3}])
def test_options_of_another_form_are_refused_where_they_are_read(
    section: str, options: Any
) -> None:
    with pytest.raises(ValidationError):
        BuildSpec.model_validate({**PLAIN, section: {"options": options}})


@pytest.mark.parametrize("name", [*TRANSFORMATION, *CONVERSION])
def test_docs_list_every_option(name: str) -> None:
    assert f"| `{name}` |" in DOCS.read_text()

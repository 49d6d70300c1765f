"""Recipes as people write them: what is written is read back, and what is wrong is named with what is allowed."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas.compression.v1.technique_pb2 import Technique
from maas.recipes import RecipeUnreadable, dump_recipe, load_recipe, parse_technique, technique_line, technique_names
from maas_compression.recipe import TECHNIQUES, parse_recipe, technique_from_proto, technique_text, technique_to_proto


@pytest.mark.parametrize(
    "line",
    [
        "int8",
        "int8(mode=static, calibration=entropy, calibration_rows=64)",
        'int8(keep=["encoder.*", output])',
        "prune(structure=heads, share=0.25)",
        'distill(student="lstm-text-classifier", temperature=2.5)',
        "int8(per_channel=false)",
        "clip(rule=absolute, bound=0.5)",
    ],
)
def test_a_line_is_read_and_written_the_same(line: str) -> None:
    assert technique_line(parse_technique(line)) == line


def test_yaml_takes_names_lines_and_settings() -> None:
    recipe = load_recipe("# small\n- vocabulary\n- prune(share=0.5)\n- int8: {mode: static, keep: [output]}\n- bf16:\n")
    assert [technique_line(one) for one in recipe] == [
        "vocabulary",
        "prune(share=0.5)",
        "int8(mode=static, keep=[output])",
        "bf16",
    ]
    assert load_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("int9", "there is no technique 'int9'; there are: clip, fixed_point,"),
        ("", "write one like int8"),
        ("int8(", "write one like int8"),
        ("int8(static)", "write one like int8"),
        ("int8 int8", "write one like int8"),
        ("a.b()", "write one like int8"),
        ("int8(made=static)", "int8 has no setting 'made'; it has: mode, calibration"),
        ("bf16(bits=8)", "bf16 has no setting 'bits'; it has none"),
        ("int8(mode=static, mode=dynamic)", "names a setting twice"),
        ("int8(**settings)", "int8"),
        ("int8(mode=open('x'))", "is no value"),
        ("int8(mode=3)", "mode is text, not '3'"),
        ("int8(per_channel=1)", "per_channel is true or false"),
        ("int8(calibration_rows=1.5)", "calibration_rows is a whole number"),
        ("int8(calibration_rows=99999999999999)", "calibration_rows cannot be"),
        ("int8(keep=output)", "keep is a list of text"),
        ("prune(share=half)", "share is a number"),
    ],
)
def test_a_wrong_line_is_refused_with_what_is_allowed(line: str, sentence: str) -> None:
    with pytest.raises(RecipeUnreadable) as refused:
        parse_technique(line)
    assert sentence in str(refused.value)
    assert refused.value.reason == "RECIPE_UNREADABLE"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a recipe is a list"),
        ("int8", "a recipe is a list"),
        ("int8: {}", "a recipe is a list"),
        ("[]", "a recipe is a list"),
        ("- int8\n- \n- prune", "step 2 (line 2): is neither a name"),
        ("- int8\n\n- int9\n", "step 2 (line 3): there is no technique 'int9'"),
        ("- int8: {mode: static}\n  prune: {}", "step 1 (line 1): is neither a name"),
        ("- int8: static", "step 1 (line 1): is neither"),
        ("- int8: {mode: {}}", "step 1 (line 1): int8: mode is text"),
        ("- int8: {per_channel: null}", "per_channel is true or false"),
        ("- int8: {1: 2}", "int8 has no setting '1'"),
        ("- 8", "step 1 (line 1): is neither"),
        ("- !!python/object/apply:os.system [ls]", "the recipe is not YAML"),
        ("- !secret int8", "the recipe is not YAML"),
        ("- &a int8\n- *a", "a recipe has no aliases"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "a recipe has no aliases"),
        ("- int8\n--- \n- int8", "the recipe is not YAML"),
        ("- int8\n - int8: [", "the recipe is not YAML"),
        ("- \x00", "the recipe is not YAML"),
        ("- int8\n" * 17, "at most 16 techniques, not 17"),
        ("- int8\n" * 20_000, "at most 65,536 characters"),
        ("[" * 60_000, "no deeper"),
        ("- " * 30_000, "no deeper"),
        ("- {a: [" * 2_000, "no deeper"),
        ("- int8: {keep: [[output]]}", "no deeper"),
        ("- int8: {calibration_rows: " + "9" * 5_000 + "}", "the recipe is not YAML"),
        ("- prune: {share: .5}\n- prune: {share: 1 2}", "step 2 (line 2): prune: share is a number"),
    ],
)
def test_a_wrong_file_is_refused_with_the_step_and_its_line(text: str, sentence: str) -> None:
    with pytest.raises(RecipeUnreadable) as refused:
        load_recipe(text)
    assert sentence in str(refused.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=80), st.from_regex(r"\A(int8|prune|clip)\([a-z_]{0,9}=.{0,20}\)\Z")))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    for read in (parse_technique, load_recipe):
        try:
            read(text)
        except RecipeUnreadable as error:
            assert error.reason == "RECIPE_UNREADABLE"


VALUES = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "whole": st.integers(-(2**31), 2**31 - 1),
    "number": st.floats(allow_nan=False, allow_infinity=False),
}


@st.composite
def techniques(draw: st.DrawFn) -> Technique:
    technique = Technique()
    name = draw(st.sampled_from(technique_names()))
    message = getattr(technique, name)
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        kind = {field.CPPTYPE_STRING: "string", field.CPPTYPE_INT32: "whole", field.CPPTYPE_DOUBLE: "number"}
        if field.cpp_type == field.CPPTYPE_BOOL:
            setattr(message, field.name, draw(st.booleans()))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(VALUES["string"], max_size=3)))
        else:
            setattr(message, field.name, draw(VALUES[kind[field.cpp_type]]))
    return technique


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(techniques())
def test_whatever_the_contract_can_hold_is_kept_as_text(technique: Technique) -> None:
    assert parse_technique(technique_line(technique)) == technique
    assert load_recipe(dump_recipe([technique])) == [technique]
    value = technique_from_proto(technique)
    assert parse_recipe([technique_text(value)]) == (value,)
    assert technique_from_proto(technique_to_proto(value)) == value


def test_each_technique_has_settings_of_the_contract() -> None:
    assert list(TECHNIQUES) == technique_names()

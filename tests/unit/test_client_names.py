import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas import names

EXAMPLES = {
    names.ModelName: "models/reviews",
    names.VersionName: "models/reviews/versions/3",
    names.SignatureName: "models/reviews/versions/3/signatures/" + "0a" * 32,
    names.AliasName: "models/reviews/aliases/production",
    names.DatasetName: "datasets/reviews",
    names.DatasetVersionName: "datasets/reviews/versions/12",
    names.BlobName: "blobs/" + "0a" * 32,
    names.DeploymentName: "deployments/reviews",
    names.JobName: "trainingJobs/a-1",
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_name_is_what_it_was_parsed_from(kind: type) -> None:
    assert str(kind.parse(EXAMPLES[kind])) == EXAMPLES[kind]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", EXAMPLES)
@given(text=st.text(max_size=80))
def test_any_other_text_is_refused_with_a_sentence(kind: type, text: str) -> None:
    try:
        assert str(kind.parse(text)) == text  # type: ignore[attr-defined]
    except names.NameInvalid as error:
        assert "is not" in str(error)


@pytest.mark.parametrize(
    "text",
    ["models/A", "models/", "models/-a", "models/a/versions/0", "models/a/versions/01", "models/a/", "x/a", "models/é"],
)
def test_names_that_look_nearly_right_are_refused(text: str) -> None:
    for kind in (names.ModelName, names.VersionName):
        with pytest.raises(names.NameInvalid):
            kind.parse(text)


def test_a_version_knows_its_model() -> None:
    assert names.VersionName.parse("models/a/versions/2").model == names.ModelName("a")


def test_an_alias_and_a_version_are_told_apart() -> None:
    assert names.parse_version_or_alias("models/a/aliases/b") == names.AliasName("a", "b")
    assert names.parse_version_or_alias("models/a/versions/2") == names.VersionName("a", 2)

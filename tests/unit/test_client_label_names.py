import pytest

from maas.label_names import label_names, label_names_metadata


def test_names_come_back_as_they_were_written() -> None:
    assert label_names(label_names_metadata(["negative", "positive"]), 2) == ("negative", "positive")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        label_names_metadata(["only one"]),
        label_names_metadata(["same", "same"]),
        {b"maas.label_names": b"not json"},
        {b"maas.label_names": b"[1, 2]"},
        {b"maas.label_names": b"{}"},
    ],
)
def test_names_that_do_not_fit_are_numbers(metadata: dict[bytes, bytes] | None) -> None:
    assert label_names(metadata, 2) == ("0", "1")

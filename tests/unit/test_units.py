"""Quantities as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.units import QuantityInvalid, parse_bytes, parse_rate, parse_seconds, parse_share


@pytest.mark.parametrize(
    ("parsed", "value"),
    [
        (parse_bytes("6MB"), 6_000_000),
        (parse_bytes("6 MiB"), 6 * 2**20),
        (parse_bytes("500kb"), 500_000),
        (parse_bytes("1.5GB"), 1_500_000_000),
        (parse_bytes("123"), 123),
        (parse_seconds("2ms"), 0.002),
        (parse_seconds("1.5 s"), 1.5),
        (parse_seconds("15m"), 900.0),
        (parse_seconds("1h"), 3600.0),
        (parse_rate("500"), 500.0),
        (parse_rate("500/s"), 500.0),
        (parse_share("0.01"), 0.01),
        (parse_share("1%"), 0.01),
        (parse_share("0"), 0.0),
    ],
)
def test_a_quantity_is_what_it_says(parsed: float, value: float) -> None:
    assert parsed == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.1", "6 apples", "1e3", "nan", "inf", "6MB6", "9999999GB", "٣"]
)
def test_what_is_no_size_says_how_to_write_one(text: str) -> None:
    with pytest.raises(QuantityInvalid, match="write 6MB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["2", "0ms", "-1s", "2 lightyears", "0.0s"])
def test_a_duration_has_a_unit_and_is_more_than_nothing(text: str) -> None:
    with pytest.raises(QuantityInvalid, match="write 2ms"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["1.1", "150%", "-0.1", "a bit"])
def test_a_share_is_at_most_all(text: str) -> None:
    with pytest.raises(QuantityInvalid, match="one point"):
        parse_share(text)


@given(st.text(max_size=30))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_seconds, parse_rate, parse_share):
        with contextlib.suppress(QuantityInvalid):
            assert parse(text) >= 0

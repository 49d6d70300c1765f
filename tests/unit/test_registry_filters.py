"""The language of filters and orders: what it means, and that nothing anybody writes in it is a bug of ours."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_registry.domain.filters import (
    EVERYTHING,
    All,
    Any,
    Comparison,
    FilterInvalid,
    Kind,
    Not,
    Order,
    OrderInvalid,
    Value,
    matches,
    parse_filter,
    parse_order,
    required_texts,
)
from maas_registry.domain.listing import VERSION_FIELDS

FIELDS = {
    "state": Kind.TEXT,
    "size": Kind.NUMBER,
    "create_time": Kind.TIME,
    "tags": Kind.TEXTS_BY_KEY,
    "metrics": Kind.NUMBERS_BY_KEY,
}
HAS: dict[tuple[str, str], Value] = {
    ("state", ""): "ready",
    ("size", ""): 12.0,
    ("create_time", ""): datetime(2026, 3, 1, tzinfo=UTC),
    ("tags", "team"): 'n"lp',
    ("metrics", "f1"): 0.5,
}


def is_true(text: str) -> bool:
    return matches(parse_filter(text, FIELDS), lambda field, key: HAS.get((field, key)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "state = ready",
        'state = "ready"',
        "state=ready AND size>11",
        'tags.team = "n\\"lp"',
        "tags:team",
        "state:ead",
        'create_time > "2026-02-28" AND create_time <= "2026-03-01T00:00:00Z"',
        'create_time < "2026-03-01T02:00:00+01:00"',
        "metrics.f1 >= 0.5",
        "metrics.f1 > -1e3",
        "state = archived OR size = 12",
        "NOT state = archived",
        "NOT tags.other = x",
        "(state = archived OR size = 12) AND NOT (size < 12)",
        "state != archived",
    ],
)
def test_what_a_filter_lets_through(text: str) -> None:
    assert is_true(text)


@pytest.mark.parametrize(
    "text",
    [
        "state = archived",
        "state = ready AND size > 12",
        "NOT state = ready",
        "tags:other",
        "tags.other != x",
        "metrics.accuracy < 1",
        "state = archived OR size = 13",
        "size != 12",
    ],
)
def test_what_a_filter_keeps_back(text: str) -> None:
    assert not is_true(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("state", 6),
        ("state =", 8),
        ("= ready", 1),
        ("state = ready size = 1", 15),
        ("state = ready AND", 18),
        ("state = a AND size = 1 OR size = 2", 24),
        ("(state = ready", 15),
        ("state = ready)", 14),
        ("colour = red", 1),
        ("tags = red", 1),
        ("state.x = red", 1),
        ("size = big", 8),
        ("size : 1", 6),
        ("create_time > yesterday", 15),
        ('state = "ready', 9),
        ("state = ready AND §", 19),
        ("(" * 12 + "state = ready" + ")" * 12, 12),
        (" AND ".join(["size = 1"] * 51), 651),
    ],
)
def test_a_filter_that_is_wrong_says_where(text: str, where: int) -> None:
    with pytest.raises(FilterInvalid) as caught:
        parse_filter(text, FIELDS)
    assert f"at character {where} " in caught.value.message.replace(":", " ")
    assert caught.value.violations[0].field == "filter"


def test_a_filter_is_read_into_a_value() -> None:
    assert parse_filter("state = a AND (size = 1 OR NOT size > 2)", FIELDS) == All(
        (
            Comparison("state", "", "=", "a"),
            Any((Comparison("size", "", "=", 1.0), Not(Comparison("size", "", ">", 2.0)))),
        )
    )
    assert parse_filter("  ", FIELDS) is EVERYTHING


def test_what_a_store_may_look_for_alone_is_what_all_that_pass_have() -> None:
    assert required_texts(parse_filter("state = a AND size = 1 AND tags.x = y", FIELDS)) == {"state": "a"}
    assert required_texts(parse_filter("state = a", FIELDS)) == {"state": "a"}
    for text in ("state = a OR size = 1", "NOT state = a", "state != a", ""):
        assert required_texts(parse_filter(text, FIELDS)) == {}


def test_an_order_is_a_field_and_a_direction() -> None:
    default = Order("size")
    assert parse_order("", FIELDS, default) == default
    assert parse_order("create_time", FIELDS, default) == Order("create_time")
    assert parse_order(" metrics.f1  desc ", FIELDS, default) == Order("metrics", "f1", descending=True)
    for text in ("colour", "size down", "metrics", "size, state", "size desc desc"):
        with pytest.raises(OrderInvalid):
            parse_order(text, FIELDS, default)


@given(st.text(max_size=60) | st.lists(st.sampled_from([
    "state", "tags.a", "tags", "metrics.x", "create_time", "number", "=", "<", ":", "!=", "(", ")", "AND", "OR", "NOT",
    '"a"', '"2026-01-01"', '"0001-01-01T00:00:00+14:00"', '"', "\\", "1e999", "nan", "-1", "ready", "\x00",
]), max_size=14).map(" ".join))  # fmt: skip
def test_whatever_is_written_is_a_filter_or_is_refused(text: str) -> None:
    values: dict[Kind, Value] = {
        Kind.TEXT: "ready",
        Kind.TEXTS_BY_KEY: "a",
        Kind.NUMBER: 1.0,
        Kind.NUMBERS_BY_KEY: 0.5,
        Kind.TIME: datetime(2026, 1, 1, tzinfo=UTC),
    }
    try:
        wanted = parse_filter(text, VERSION_FIELDS)
    except FilterInvalid:
        return
    assert matches(wanted, lambda field, _: values[VERSION_FIELDS[field]]) in (True, False)

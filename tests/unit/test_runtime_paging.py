import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.names import ModelName, VersionName
from maas_runtime.paging import PageTokenInvalid, cut_page, page_size_or_default, page_token, read_page_token


def test_a_token_brings_back_where_the_page_ended() -> None:
    token = page_token("models/a/versions", VersionName("a", 7))
    assert read_page_token("models/a/versions", token, VersionName.parse) == VersionName("a", 7)


def test_no_token_asks_for_the_first_page() -> None:
    assert read_page_token("models", "", ModelName.parse) is None


def test_a_token_of_another_query_is_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        read_page_token("models/b/versions", page_token("models/a/versions", VersionName("a", 7)), VersionName.parse)


@given(st.text())
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        read_page_token("models", text, ModelName.parse)
    except PageTokenInvalid as failure:
        assert failure.violations[0].field == "page_token"


@given(st.lists(st.integers(0, 50), max_size=30, unique=True), st.integers(1, 7))
def test_pages_together_are_the_list(numbers: list[int], page_size: int) -> None:
    numbers.sort()
    seen: list[int] = []
    token = ""
    while True:
        after = read_page_token("numbers", token, int)
        found = [number for number in numbers if after is None or number > after][: page_size + 1]
        page = cut_page("numbers", found, page_size, key=lambda number: number)
        assert len(page.items) <= page_size
        seen += page.items
        token = page.next_page_token
        if not token:
            break
    assert seen == numbers


def test_a_request_without_a_size_gets_a_hundred() -> None:
    assert (page_size_or_default(0), page_size_or_default(5)) == (100, 5)

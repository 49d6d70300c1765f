"""Answers given again to equal requests, within a bound of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from maas_inference.front.answer_cache import AnswerCache
from maas_inference.front.question import Answer, Group

GROUP: Group = (("x", "UINT8", (2,)),)


def answer(size_bytes: int) -> Answer:
    return Answer((), ((1, size_bytes),), [bytes(size_bytes)])


def test_an_equal_request_gets_the_answer_and_another_does_not() -> None:
    cache = AnswerCache(1 << 20)
    key = cache.key(GROUP, 1, [b"ab"])
    assert cache.get(key) is None
    kept = answer(10)
    cache.put(key, kept)
    assert cache.get(cache.key(GROUP, 1, [memoryview(b"ab")])) is kept
    assert (cache.hits, cache.misses) == (1, 1)


def test_everything_that_an_answer_depends_on_is_in_the_key() -> None:
    cache = AnswerCache(1 << 20)
    other: Group = (("x", "INT8", (2,)),)
    keys = {
        cache.key(GROUP, 1, [b"ab"]),
        cache.key(GROUP, 2, [b"ab"]),
        cache.key(other, 1, [b"ab"]),
        cache.key(GROUP, 1, [b"a", b"b"]),
        cache.key(GROUP, 1, [b"ab", b""]),
        cache.key(GROUP, 1, [b"ba"]),
    }
    assert len(keys) == 6


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache = AnswerCache(3 * 2048)
    keys = [cache.key(GROUP, 1, [bytes([number])]) for number in range(4)]
    for key in keys[:3]:
        cache.put(key, answer(1024))
    cache.get(keys[0])
    cache.put(keys[3], answer(1024))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]


def test_an_answer_larger_than_the_bound_is_not_kept() -> None:
    cache = AnswerCache(4096)
    cache.put(b"key", answer(5000))
    assert cache.get(b"key") is None
    assert cache.size_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4000)), max_size=60), st.integers(0, 20_000))
def test_the_bound_always_holds(puts: list[tuple[int, int]], bound_bytes: int) -> None:
    cache = AnswerCache(bound_bytes)
    for number, size_bytes in puts:
        cache.put(bytes([number]), answer(size_bytes))
        assert 0 <= cache.size_bytes <= bound_bytes

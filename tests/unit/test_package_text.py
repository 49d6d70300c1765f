from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_package.text import (
    MAX_COUNTED_WORDS,
    TextEmpty,
    TextNotUnicode,
    TextTokenizer,
    TokenizerInvalid,
    build_word_tokenizer,
    decode_texts,
)

TOKENIZER = build_word_tokenizer(["it's good, isn't it? Good!", "I don't know"], vocabulary_size=100, max_tokens=8)


def ids(text: str) -> list[int]:
    return [int(token) for token in TOKENIZER.encode([text])[0]]


def test_padding_is_0_and_an_unknown_word_is_1() -> None:
    assert TOKENIZER.encode(["good zebra", "good"]).tolist() == [[ids("good")[0], 1], [ids("good")[0], 0]]
    assert TOKENIZER.padding_id == 0


def test_a_text_of_unknown_words_only_is_encoded() -> None:
    assert ids("zebra quagga") == [1, 1]


def test_case_does_not_matter_and_marks_are_words() -> None:
    assert ids("GOOD") == ids("good")
    assert len(ids("good, good!")) == 4


def test_negation_is_a_word_of_its_own() -> None:
    assert ids("isn't")[-1] == ids("don't")[-1] == ids("n't")[0]
    assert ids("isn’t") == ids("isn't")
    assert ids("wouldn't") == [1, ids("n't")[0]]


def test_the_most_frequent_words_are_kept_and_equal_counts_go_by_the_alphabet() -> None:
    tokenizer = build_word_tokenizer(["b b b a c c", "d a"], vocabulary_size=5)
    assert tokenizer.vocabulary_size == 5
    assert tokenizer.encode(["b a c d"]).tolist() == [[2, 3, 4, 1]]


def test_words_are_counted_with_bounded_memory() -> None:
    rare = (f"common w{number}" for number in range(MAX_COUNTED_WORDS + 1000))
    tokenizer = build_word_tokenizer(rare, vocabulary_size=3)
    assert tokenizer.encode(["common w5"]).tolist() == [[2, 1]]


def test_rows_are_padded_to_the_longest_and_cut_at_max_tokens() -> None:
    tokens = TOKENIZER.encode(["good", "good good good", "good " * 100])
    assert tokens.shape == (3, 8)
    assert tokens.dtype == np.int64
    assert (tokens[1] != 0).sum() == 3


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u2003"])
def test_an_empty_text_is_refused_and_named(text: str) -> None:
    with pytest.raises(TextEmpty) as refused:
        TOKENIZER.encode(["good", text])
    assert refused.value.violations[0].field == "text[1]"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(TextNotUnicode):
        TOKENIZER.encode(["good \ud800"])


def test_bytes_that_are_not_utf8_are_refused() -> None:
    assert decode_texts([b"good", "also good"]) == ["good", "also good"]
    with pytest.raises(TextNotUnicode):
        decode_texts([b"\xff\xfe"])


@pytest.mark.parametrize("text", ["good " * 200_000, "x" * 1_000_000, "!" * 1_000_000, "\n" * 1_000_000 + "good"])
def test_a_megabyte_of_text_is_encoded_like_its_beginning(text: str) -> None:
    assert ids(text) == ids(text.lstrip()[:512])


def test_a_saved_tokenizer_encodes_alike(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    back = TextTokenizer.from_file(tmp_path / "tokenizer.json", 8)
    texts = ["It isn't good!", "zebra"]
    assert back.encode(texts).tolist() == TOKENIZER.encode(texts).tolist()
    assert (back.vocabulary_size, back.max_tokens) == (TOKENIZER.vocabulary_size, 8)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"model": {"type": "WordLevel"}}'])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerInvalid):
        TextTokenizer.from_file(tmp_path / "tokenizer.json", 8)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_either_encoded_or_refused(text: str) -> None:
    try:
        tokens = TOKENIZER.encode([text])
    except TextEmpty:
        return
    assert 1 <= tokens.shape[1] <= 8
    assert tokens.min() >= 1

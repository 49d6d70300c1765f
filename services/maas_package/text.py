"""Texts to word ids, with a Hugging Face tokenizer.json."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from maas_runtime.failures import FieldViolation, InvalidInput

PADDING_ID = 0
PADDING_TOKEN = "[PAD]"
PADDING_TOKENS = (PADDING_TOKEN, "<pad>")
"""What tokenizers call it: BERT's and ours, and RoBERTa's."""
UNKNOWN_TOKEN = "[UNK]"

# A word loses a final n't and 's, 're, 've, 'll, 'd, 'm, which become words of their own, so that "isn't" and "doesn't"
# share what they have in common: the negation. Every mark is a word too: the example data's validation accuracy was
# 0.782 so, and 0.773 with only "!" and "?" kept (means of two seeds).
_WORDS = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]"

MAX_COUNTED_WORDS = 500_000
"""Different words that are counted at once when a vocabulary is made: about 100 MB."""

# A text is cut to this many characters for each token that is kept, before it is looked at: words of natural language
# are far shorter, and a megabyte of anything costs no more than a page.
_CHARACTERS_PER_TOKEN = 64


class TextEmpty(InvalidInput):
    """A text has no words to look at."""

    reason = "TEXT_EMPTY"


class TextNotUnicode(InvalidInput):
    """A text is not valid UTF-8, or has lone surrogates."""

    reason = "TEXT_NOT_UNICODE"


class TokenizerInvalid(InvalidInput):
    """The package's tokenizer.json cannot be read."""

    reason = "TOKENIZER_INVALID"


class TextTokenizer:
    """Turns texts into right-padded word ids; safe to be used by several threads."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_tokens = max_tokens
        named = (tokenizer.token_to_id(token) for token in PADDING_TOKENS)
        self._padding_id = next((int(found) for found in named if found is not None), PADDING_ID)

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> "TextTokenizer":
        """Read a tokenizer.json. Raises TokenizerInvalid."""
        content = path.read_bytes()
        try:
            tokenizer = Tokenizer.from_buffer(content)
        # The library raises bare Exception for whatever it cannot read.
        except Exception as error:
            raise TokenizerInvalid(f"{path.name} is not a tokenizer: {error}") from error
        return cls(tokenizer, max_tokens)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the two special ones included."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def padding_id(self) -> int:
        """The id that fills a row up."""
        return self._padding_id

    @property
    def max_tokens(self) -> int:
        """How many ids of a text are kept."""
        return self._max_tokens

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return int64 [N, T]: right-padded to the longest text, truncated to max_tokens.

        Raises TextEmpty for a text without words, TextNotUnicode for one that has no UTF-8 form.
        """
        try:
            rows = [self._encode_text(text) for text in texts]
        except UnicodeEncodeError as error:
            raise TextNotUnicode("a text has characters that are not Unicode (lone surrogates)") from error
        for index, ids in enumerate(rows):
            if not ids:
                raise TextEmpty(
                    "a text is empty; send at least one word",
                    violations=(FieldViolation(f"text[{index}]", "must have at least one word"),),
                )
        tokens = np.full((len(rows), max(map(len, rows), default=0)), self._padding_id, np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    def _encode_text(self, text: str) -> list[int]:
        head = text.lstrip()[: self._max_tokens * _CHARACTERS_PER_TOKEN]
        head.encode()  # The library's own error for lone surrogates is a TypeError that says nothing.
        encoding = self._tokenizer.encode(head)
        ids: list[int] = encoding.ids
        # What only opens and closes a text is no word of it.
        return [] if all(encoding.special_tokens_mask) else ids


def decode_texts(values: Iterable[bytes | str]) -> list[str]:
    """Return the texts of a BYTES tensor. Raises TextNotUnicode."""
    try:
        return [value if isinstance(value, str) else bytes(value).decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise TextNotUnicode(f"a text is not UTF-8: {error.reason} at byte {error.start}") from error


def build_word_tokenizer(texts: Iterable[str], vocabulary_size: int, max_tokens: int = 256) -> TextTokenizer:
    """Return a tokenizer of the most frequent lower-cased words; id 0 is padding, id 1 every other word.

    Equal counts are ordered by the word itself, so that the same texts always give the same ids. When texts have more
    than MAX_COUNTED_WORDS different words, the rarer half of those seen so far is forgotten, again and again.
    """
    tokenizer = Tokenizer(models.WordLevel({PADDING_TOKEN: 0, UNKNOWN_TOKEN: 1}, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("’", "'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
        if len(counts) > MAX_COUNTED_WORDS:
            counts = Counter(dict(counts.most_common(MAX_COUNTED_WORDS // 2)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = [PADDING_TOKEN, UNKNOWN_TOKEN, *ranked[: vocabulary_size - 2]]
    tokenizer.model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN_TOKEN)
    return TextTokenizer(tokenizer, max_tokens)

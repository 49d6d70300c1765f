"""Answers that are given again to equal requests."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from maas_inference.front.question import Answer, Group

_ENTRY_BYTES = 1024
"""What an entry takes beside its tensors, roughly."""


class AnswerCache:
    """The answers of one version, within a bound of bytes; the one not asked for longest goes first.

    A key is a hash of 128 bits (BLAKE2b) of everything that an answer depends on: whoever could make two requests
    with one hash could do so after 2^64 tries.
    """

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self._answers: OrderedDict[bytes, tuple[Answer, int]] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def key(self, group: Group, rows: int, parts: Sequence[bytes | memoryview]) -> bytes:
        """Return the key of a request."""
        content = blake2b(repr((group, rows, [len(part) for part in parts])).encode(), digest_size=16)
        for part in parts:
            content.update(part)
        return content.digest()

    def get(self, key: bytes) -> Answer | None:
        """Return the answer to an equal request."""
        found = self._answers.get(key)
        if found is None:
            self.misses += 1
            return None
        self._answers.move_to_end(key)
        self.hits += 1
        return found[0]

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, unless it alone is larger than the bound."""
        size_bytes = _ENTRY_BYTES + sum(map(len, answer.raws))
        if key in self._answers or size_bytes > self.bound_bytes:
            return
        self._answers[key] = (answer, size_bytes)
        self.size_bytes += size_bytes
        while self.size_bytes > self.bound_bytes:
            _, (_, freed_bytes) = self._answers.popitem(last=False)
            self.size_bytes -= freed_bytes

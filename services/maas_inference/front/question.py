"""One request between its decoding and its answer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

from maas_inference.datatypes import BYTES
from maas_inference.wire import TensorHeader

Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
"""ASGI's receive."""

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
"""ASGI's send. Raises OSError once the caller has hung up."""

Group: TypeAlias = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, datatype and shape of one row, for each input. Questions of one group can share a batch; -1 stands for a length
that may differ from question to question, because shorter rows can be padded."""


class CallerGone(Exception):
    """The caller hung up: there is nobody to answer."""


class Answer:
    """Rows that came back: for each output its header in the batch, this question's shape and this question's bytes."""

    __slots__ = ("raws", "shapes", "tensors")

    def __init__(
        self, tensors: tuple[TensorHeader, ...], shapes: tuple[tuple[int, ...], ...], raws: list[bytes]
    ) -> None:
        self.tensors = tensors
        self.shapes = shapes
        self.raws = raws


class Asker(Protocol):
    """Whoever waits for an answer. An asyncio.Future is one."""

    def done(self) -> bool:
        """Say whether there is an answer already, or nobody who waits for it."""

    def set_result(self, answer: Answer, /) -> None:
        """Take the answer."""

    def set_exception(self, failure: BaseException, /) -> None:
        """Take a Failure, or CallerGone, instead of an answer."""


class Question:
    """Rows to be computed. `answer` gets an Answer, a Failure, or CallerGone."""

    __slots__ = (
        "answer",
        "arrived",
        "attempts",
        "bulk",
        "cache_key",
        "deadline",
        "group",
        "length_class",
        "parts",
        "probed",
        "receive",
        "rows",
        "size_bytes",
        "width",
    )

    def __init__(
        self,
        group: Group,
        rows: int,
        parts: Sequence[bytes | memoryview],
        *,
        arrived: float,
        deadline: float,
        receive: Receive,
        answer: Asker,
        width: int = 0,
        bulk: bool = False,
    ) -> None:
        self.group = group
        self.rows = rows
        self.parts = parts
        """The raw bytes of each input, in the group's order."""
        self.size_bytes = sum(map(len, parts))
        self.arrived = arrived
        self.deadline = deadline
        """Times are the monotonic clock's."""
        self.receive = receive
        """Tells whether the caller is still there."""
        self.answer = answer
        self.width = width
        """The length that stands as -1 in the group; 0 when there is none."""
        self.length_class = (self.size_bytes // rows).bit_length() if width or group[0][1] == BYTES else 0
        """About how long the rows are, as a power of two; 0 where all rows of the group are equally long."""
        self.bulk = bulk
        """Interactive questions go first."""
        self.cache_key = b""
        """Under which the answer is kept; empty when it is not."""
        self.attempts = 0
        self.probed = arrived

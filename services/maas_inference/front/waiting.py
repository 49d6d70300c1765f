"""The requests that wait for one version: bounded, interactive before bulk, what can share a batch side by side."""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from maas_inference.front.failures import QueueFull
from maas_inference.front.question import Group, Question

MAX_WAITING_ROWS: Final = 8192
MAX_WAITING_BYTES: Final = 512 << 20
MAX_BATCH_BYTES: Final = 64 << 20
BULK_PATIENCE_SECONDS: Final = 1.0
"""A bulk request goes before interactive ones that arrived so much later: it waits, but never for ever."""
_BULK_SHARE: Final = 0.75
"""Bulk requests are refused once the queue is so full; the rest is for interactive ones."""


class _Line(NamedTuple):
    """Questions that stand in one line: of one group, of about one length where lengths differ, bulk or not."""

    group: Group
    length_class: int
    bulk: bool


class Waiting:
    """Lines of questions, each oldest first."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows = 0
        self._bytes = 0
        self._lines: dict[_Line, deque[Question]] = {}

    def __iter__(self) -> Iterator[Question]:
        for questions in self._lines.values():
            yield from questions

    def check_room(self, question: Question) -> None:
        """Raise QueueFull when there is no room for the question."""
        share = _BULK_SHARE if question.bulk else 1.0
        if (
            self.rows + question.rows > self.max_rows * share
            or self._bytes + question.size_bytes > MAX_WAITING_BYTES * share
        ):
            kind = "bulk requests" if question.bulk else "requests"
            raise QueueFull(f"{self.rows} rows wait, no more {kind} are taken; retry later", retry_after_seconds=0.5)

    def put(self, question: Question, *, first: bool = False) -> None:
        """Let a question wait, or wait again in front of the others."""
        line = _Line(question.group, question.length_class, question.bulk)
        questions = self._lines.get(line)
        if questions is None:
            questions = self._lines[line] = deque()
        if first:
            questions.appendleft(question)
        else:
            questions.append(question)
        self.rows += question.rows
        self._bytes += question.size_bytes

    def oldest_arrival(self) -> float:
        """Return when the question arrived that waits longest. There has to be one."""
        return min([questions[0].arrived for questions in self._lines.values()])

    def take(self, max_rows: int, enough_rows: int, answered_at: float) -> "Taken":
        """Take one batch out: the line whose turn it is, then what fits to it while there is room.

        `answered_at`: when the batch is expected to be answered; whose deadline is before it is left out.

        Rows of another length would make all rows of the batch as long as the longest, so they are taken only while
        the batch has fewer than `enough_rows`. Questions that were tried before come alone.
        """
        taken = Taken()
        if len(self._lines) == 1:
            self._take_from(next(iter(self._lines)), taken, max_rows, answered_at)
            return taken
        first = min(self._lines, key=self._turn)
        for line in sorted(
            (line for line in self._lines if line.group == first.group),
            key=lambda line: (line != first, abs(line.length_class - first.length_class), line.bulk),
        ):
            if line.length_class != first.length_class and taken.rows >= enough_rows:
                break
            self._take_from(line, taken, max_rows, answered_at)
        return taken

    def _turn(self, line: _Line) -> float:
        return self._lines[line][0].arrived + BULK_PATIENCE_SECONDS * line.bulk

    def _take_from(self, line: _Line, taken: "Taken", max_rows: int, answered_at: float) -> None:
        questions = self._lines[line]
        batch = taken.questions
        while questions:
            question = questions[0]
            if batch and (
                taken.rows + question.rows > max_rows
                or taken.size_bytes + question.size_bytes > MAX_BATCH_BYTES
                or batch[0].attempts
                or question.attempts
            ):
                break
            questions.popleft()
            self.rows -= question.rows
            self._bytes -= question.size_bytes
            if question.answer.done():
                continue
            if answered_at >= question.deadline:
                taken.expired.append(question)
                continue
            batch.append(question)
            taken.rows += question.rows
            taken.size_bytes += question.size_bytes
        if not questions:
            del self._lines[line]


class Taken:
    """The questions of a batch, and those whose time is over before it is answered."""

    __slots__ = ("expired", "questions", "rows", "size_bytes")

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.expired: list[Question] = []
        self.rows = 0
        self.size_bytes = 0

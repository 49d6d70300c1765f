"""The requests that wait for one version of a deployment, and the batches that are with its worker."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from maas_inference.datatypes import BYTES, join_elements, split_elements
from maas_inference.front.batching import BatchingPolicy
from maas_inference.front.failures import (
    ComputeFailed,
    DeadlineExpired,
    InputRefused,
    ModelUnloaded,
    NoRoomToLoad,
    QueueFull,
    VersionNotReady,
    WorkerLost,
    status_of,
)
from maas_inference.front.metrics import VersionMetrics
from maas_inference.front.question import Answer, CallerGone, Group, Question
from maas_inference.front.worker_link import BatchSender
from maas_inference.table import ServedVersion
from maas_inference.wire import Batch, Refusal, Reply, TensorHeader
from maas_runtime.failures import Failure

MAX_WAITING_ROWS = 8192
MAX_WAITING_BYTES = 512 << 20
MAX_BATCH_BYTES = 64 << 20
MAX_ATTEMPTS = 2
"""A request whose worker was lost is sent once more, alone: it may be what ended the worker."""
MAX_RESTART_WAIT_SECONDS = 10.0
"""How long a request waits for a worker that is being restarted."""
_PROBE_AFTER_SECONDS = 0.1


@dataclass(slots=True)
class _InFlight:
    """A batch that is with the worker."""

    questions: list[Question]
    rows: int
    sent: float
    unanswered: int


class VersionQueue:
    """Bounded; one group of equal shapes at a time goes out, oldest first. Not for use by several threads."""

    def __init__(self, deployment: str, served: ServedVersion, metrics: VersionMetrics) -> None:
        self.deployment = deployment
        self.served = served
        self.metrics = metrics
        self._policy = _policy_of(served)
        self._waiting: dict[Group, deque[Question]] = {}
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._retried: set[Question] = set()
        self._in_flight: dict[int, _InFlight] = {}
        self._next_batch = 0
        self._expected_end = 0.0
        self._link: BatchSender | None = None
        self._left: BatchSender | None = None
        """A worker that is sent nothing more, and still answers what it has."""
        self._left_answered = asyncio.Event()
        self._link_gone_since = time.monotonic()
        self._pump_scheduled = False
        self._became_idle: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_connected(self) -> bool:
        """Whether a worker can take batches."""
        return self._link is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is with the worker."""
        return not self._waiting_rows and not self._in_flight

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits for its batch."""
        return self._waiting_rows > 0

    async def until_idle(self) -> None:
        """Wait until nothing waits and nothing is with the worker."""
        self._became_idle = asyncio.Event()
        if not self.is_idle:
            await self._became_idle.wait()

    def oldest_in_flight_seconds(self, now: float) -> float:
        """Return for how long the oldest batch has been with the worker; 0 when there is none."""
        return max((now - in_flight.sent for in_flight in self._in_flight.values()), default=0.0)

    async def leave(self) -> None:
        """Send nothing more to the worker, and return when it has answered what it has, or is lost."""
        self._left, self._link = self._link, None
        self._link_gone_since = time.monotonic()
        self._left_answered.clear()
        if self._in_flight:
            await self._left_answered.wait()

    def serve(self, served: ServedVersion) -> None:
        """Go on with what a new table says of the version."""
        if served.state == "loading" and self.served.inputs:
            # A manager that was started again does not know yet what the version takes. For callers it is a restart.
            served = replace(self.served, state="restarting", weight=served.weight, socket_path=served.socket_path)
        self.served = served
        self._policy = _policy_of(served)
        if self._link is None and (refusal := self._refusal()) is not None:
            for questions in self._waiting.values():
                for question in questions:
                    self._fail(question, refusal)
            self._drop_answered()

    def put(self, question: Question) -> None:
        """Let a question wait for its batch. Raises QueueFull, VersionNotReady, NoRoomToLoad, ModelUnloaded."""
        if self._link is None and (refusal := self._refusal()) is not None:
            raise refusal
        if (
            self._waiting_rows + question.rows > MAX_WAITING_ROWS
            or self._waiting_bytes + question.size_bytes > MAX_WAITING_BYTES
        ):
            raise QueueFull(
                f"{self._waiting_rows} rows wait for {self.deployment}; retry later", retry_after_seconds=0.5
            )
        self._wait(question)

    def connected(self, link: BatchSender) -> None:
        """Send batches over `link` from now on."""
        self._link = link
        self._schedule_pump()

    def disconnected(self, link: BatchSender) -> None:
        """The worker is lost: what was with it waits again, once, in front of the others."""
        if link not in (self._link, self._left):
            return
        self._link = self._left = None
        self._left_answered.set()
        self._link_gone_since = time.monotonic()
        lost, self._in_flight = self._in_flight, {}
        for in_flight in reversed(lost.values()):
            for question in reversed(in_flight.questions):
                if question.answer.done():
                    continue
                if question.attempts >= MAX_ATTEMPTS:
                    self._fail(question, WorkerLost("the engine worker ended twice while it had the request"))
                else:
                    self._retried.add(question)
                    self._wait(question, first=True)

    def replied(self, reply: Reply, payload: memoryview) -> None:
        """Answer the callers that a reply is for."""
        in_flight = self._in_flight.get(reply.batch)
        if in_flight is None:
            return
        questions = in_flight.questions[reply.first : reply.first + reply.count]
        if reply.refusal is not None:
            for question in questions:
                self._fail(question, _failure_of(reply.refusal))
        else:
            self._answer(questions, reply, payload)
        in_flight.unanswered -= reply.count
        now = time.monotonic()
        self.metrics.compute.observe(reply.compute_seconds)
        if in_flight.unanswered <= 0:
            del self._in_flight[reply.batch]
            if reply.count == len(in_flight.questions):
                self._policy.computed(in_flight.rows, reply.compute_seconds)
            self._expected_end = now + sum(self._policy.cost_seconds(left.rows) for left in self._in_flight.values())
            self.metrics.wait.observe(max(0.0, now - in_flight.sent - reply.compute_seconds))
            if not self._in_flight:
                self._left_answered.set()
            if self._waiting_rows:
                self._schedule_pump()
            elif self._became_idle is not None and self.is_idle:
                self._became_idle.set()

    def expire(self, now: float) -> None:
        """Answer those whose time is over, and those that no worker came back for."""
        gave_up = self._link is None and now - self._link_gone_since > MAX_RESTART_WAIT_SECONDS
        for question in self._all_questions():
            if question.answer.done():
                continue
            if now >= question.deadline:
                self._fail(question, DeadlineExpired("the caller's time was over before there was an answer"))
            elif gave_up and now - question.arrived > MAX_RESTART_WAIT_SECONDS:
                self._fail(question, WorkerLost(f"no worker came back within {MAX_RESTART_WAIT_SECONDS:.0f} s"))
        if self._link is None and self._waiting_rows:
            self._drop_answered()

    def to_probe(self, now: float) -> Iterator[Question]:
        """Yield the waiting questions whose callers should be asked whether they are still there."""
        for questions in self._waiting.values():
            for question in questions:
                if now - question.probed > _PROBE_AFTER_SECONDS:
                    question.probed = now
                    yield question

    def fail_all(self, message: str) -> None:
        """Answer everybody with UNAVAILABLE: the front ends."""
        for question in self._all_questions():
            if not question.answer.done():
                self._fail(question, WorkerLost(message))

    def _drop_answered(self) -> None:
        """Forget the waiting questions that were answered; where there is no worker, no batch takes them out."""
        left = [
            question for questions in self._waiting.values() for question in questions if not question.answer.done()
        ]
        self._waiting.clear()
        self._waiting_rows = self._waiting_bytes = 0
        for question in left:
            self._wait(question)

    def _refusal(self) -> Failure | None:
        """Return what is said to those who would wait for a worker; None when one comes, or is there."""
        served = self.served
        told = f"version {served.version} of {self.deployment} is {served.state}"
        match served.refusal, served.state:
            case "", "ready" | "restarting" | "unloaded":
                return None
            case "", "loading" if served.inputs:
                return None  # on demand
            case NoRoomToLoad.reason, _:
                return NoRoomToLoad(f"{told}: {served.message}", retry_after_seconds=1.0)
            case ModelUnloaded.reason, _:
                return ModelUnloaded(f"{told}: {served.message}", retry_after_seconds=5.0)
            case _:
                return VersionNotReady(f"{told}: {served.message}" if served.message else told, retry_after_seconds=1.0)

    def _wait(self, question: Question, *, first: bool = False) -> None:
        questions = self._waiting.get(question.group)
        if questions is None:
            questions = self._waiting[question.group] = deque()
        if first:
            questions.appendleft(question)
        else:
            questions.append(question)
        self._waiting_rows += question.rows
        self._waiting_bytes += question.size_bytes
        if not self._pump_scheduled:
            self._schedule_pump()

    def _schedule_pump(self) -> None:
        # After the callbacks that are already due, so that requests that arrived together leave together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while self._link is not None and self._waiting_rows:
            if self._retried and self._must_wait_for_retried():
                return
            now = time.monotonic()
            reason = self._policy.release(self._waiting_rows, len(self._in_flight), self._expected_end, now)
            if not reason:
                return
            self._release(self._link, reason, now)

    def _must_wait_for_retried(self) -> bool:
        """Say whether a request that is tried again is with the worker: if it ends another one, nobody else is hurt."""
        self._retried = {question for question in self._retried if not question.answer.done()}
        return bool(self._retried and self._in_flight)

    def _release(self, link: BatchSender, reason: str, now: float) -> None:
        group = self._oldest_group()
        questions = self._take(group, now)
        if not questions:
            return
        rows = tuple([question.rows for question in questions])
        total_rows = sum(rows)
        batch = self._next_batch
        self._next_batch += 1
        for question in questions:
            question.attempts += 1
            self.metrics.queue.observe(now - question.arrived)
        tensors = []
        parts: list[bytes | memoryview] = []
        for index, (name, datatype, row_shape) in enumerate(group):
            pieces = [question.parts[index] for question in questions]
            tensors.append(TensorHeader(name, datatype, (total_rows, *row_shape), sum(map(len, pieces))))
            parts += pieces
        self._in_flight[batch] = _InFlight(questions, total_rows, now, len(questions))
        self._expected_end = max(self._expected_end, now) + self._policy.cost_seconds(total_rows)
        self.metrics.releases[reason] += 1
        self.metrics.batch_rows.observe(total_rows)
        link.send(Batch(batch, rows, tuple(tensors)), parts)

    def _oldest_group(self) -> Group:
        if len(self._waiting) == 1:
            return next(iter(self._waiting))
        return min(self._waiting, key=lambda group: self._waiting[group][0].arrived)

    def _take(self, group: Group, now: float) -> list[Question]:
        """Take what fits into one batch; whoever is answered already, or has no time left, stays out of it."""
        questions = self._waiting[group]
        taken: list[Question] = []
        rows = size_bytes = 0
        while questions:
            question = questions[0]
            if taken and (
                rows + question.rows > self._policy.max_rows
                or size_bytes + question.size_bytes > MAX_BATCH_BYTES
                or taken[0].attempts
                or question.attempts
            ):
                break
            questions.popleft()
            self._waiting_rows -= question.rows
            self._waiting_bytes -= question.size_bytes
            if question.answer.done():
                continue
            if now >= question.deadline:
                self._fail(question, DeadlineExpired("the caller's time was over before there was an answer"))
                continue
            taken.append(question)
            rows += question.rows
            size_bytes += question.size_bytes
        if not questions:
            del self._waiting[group]
        return taken

    def _answer(self, questions: Sequence[Question], reply: Reply, payload: memoryview) -> None:
        now = time.monotonic()
        rows = [question.rows for question in questions]
        columns = list(_split(reply.tensors, payload, rows))
        shapes: dict[int, tuple[tuple[int, ...], ...]] = {}
        answered = 0
        for index, question in enumerate(questions):
            if not question.answer.done():
                if question.rows not in shapes:
                    shapes[question.rows] = _shapes(reply.tensors, None if len(rows) == 1 else question.rows)
                raws = [column[index] for column in columns]
                question.answer.set_result(Answer(reply.tensors, shapes[question.rows], raws))
                self.metrics.total.observe(now - question.arrived)
                answered += 1
        self.metrics.statuses["OK"] += answered

    def _fail(self, question: Question, failure: Failure) -> None:
        if not question.answer.done():
            question.answer.set_exception(failure)
            self.metrics.statuses[status_of(failure).name] += 1

    def _all_questions(self) -> Iterator[Question]:
        for questions in self._waiting.values():
            yield from questions
        for in_flight in self._in_flight.values():
            yield from in_flight.questions


async def drop_if_gone(question: Question) -> None:
    """Ask whether the caller is still there.

    pyvoy answers `receive` at once after the end of the body, so whether a caller hung up has to be asked for.
    """
    message = await question.receive()
    if message["type"] == "http.disconnect" and not question.answer.done():
        question.answer.set_exception(CallerGone())


def _policy_of(served: ServedVersion) -> BatchingPolicy:
    return BatchingPolicy(served.max_batch_rows if served.joins_rows else 1, served.cost_curve)


def _failure_of(refusal: Refusal) -> Failure:
    failure: Failure = InputRefused(refusal.message) if refusal.invalid else ComputeFailed(refusal.message)
    if refusal.reason:
        failure.reason = refusal.reason
    return failure


def _shapes(tensors: Sequence[TensorHeader], rows: int | None) -> tuple[tuple[int, ...], ...]:
    """Return the outputs' shapes for one caller with `rows` of a batch; None: the batch is the caller's alone."""
    return tuple([tensor.shape if rows is None else (rows, *tensor.shape[1:]) for tensor in tensors])


def _split(tensors: Sequence[TensorHeader], payload: memoryview, rows: Sequence[int]) -> Iterator[list[bytes]]:
    """Yield, for each output, the bytes of each question's rows."""
    position = 0
    for tensor in tensors:
        end = position + tensor.size_bytes
        raw = bytes(payload[position:end])
        position = end
        if len(rows) == 1:
            yield [raw]
        elif tensor.datatype == BYTES:
            yield _split_elements_by_rows(tensor, raw, rows)
        else:
            row_bytes = len(raw) // tensor.shape[0]
            pieces, begin = [], 0
            for count in rows:
                stop = begin + count * row_bytes
                pieces.append(raw[begin:stop])
                begin = stop
            yield pieces


def _split_elements_by_rows(tensor: TensorHeader, raw: bytes, rows: Sequence[int]) -> list[bytes]:
    elements = split_elements(raw)
    row_elements = len(elements) // tensor.shape[0]
    pieces, begin = [], 0
    for count in rows:
        stop = begin + count * row_elements
        pieces.append(join_elements(elements[begin:stop]))
        begin = stop
    return pieces

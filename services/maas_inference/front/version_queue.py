"""One version of a deployment: the requests that wait for it, and the batches that are with its worker."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from maas_inference.datatypes import BYTES, ELEMENT_SIZES, join_elements, pack, split_elements
from maas_inference.front.answer_cache import AnswerCache
from maas_inference.front.batching import CostCurve, Lane, Pace, Release, Rows, release, rules_for
from maas_inference.front.failures import (
    ComputeFailed,
    DeadlineExpired,
    InputRefused,
    ModelUnloaded,
    NoRoomToLoad,
    VersionNotReady,
    WorkerLost,
    status_of,
    too_long,
)
from maas_inference.front.metrics import VersionMetrics
from maas_inference.front.question import Answer, CallerGone, Question
from maas_inference.front.tuning import Tuner
from maas_inference.front.waiting import MAX_WAITING_ROWS, Waiting
from maas_inference.front.worker_link import BatchSender
from maas_inference.table import ServedVersion, ServingSettings
from maas_inference.wire import Batch, Refusal, Reply, TensorHeader
from maas_runtime.failures import Failure

MAX_ATTEMPTS = 2
"""A request whose worker was lost is sent once more, alone: it may be what ended the worker."""
MAX_RESTART_WAIT_SECONDS = 10.0
"""How long a request waits for a worker that is being restarted."""
_PROBE_AFTER_SECONDS = 0.1
_MOST_OF_THE_TIME = 0.35
"""The rest of a caller's time is for the way there and back, and for an estimate that is too low."""


@dataclass(slots=True)
class _InFlight:
    """A batch that is with the worker."""

    questions: list[Question]
    rows: int
    sent: float
    lane: int
    epoch: int
    unanswered: int


class VersionQueue:
    """What can share a batch goes out together, oldest first. Not for use by several threads."""

    def __init__(
        self,
        deployment: str,
        served: ServedVersion,
        metrics: VersionMetrics,
        settings: ServingSettings,
    ) -> None:
        self.deployment = deployment
        self.metrics = metrics
        self._waiting = Waiting(MAX_WAITING_ROWS)
        self._retried: set[Question] = set()
        self._in_flight: dict[int, _InFlight] = {}
        self._in_flight_rows = 0
        self._pace = Pace()
        self._next_batch = 0
        self._link: BatchSender | None = None
        self._left: BatchSender | None = None
        """A worker that is sent nothing more, and still answers what it has."""
        self._left_answered = asyncio.Event()
        self._link_gone_since = time.monotonic()
        self._pump_scheduled = False
        self._delay_timer: asyncio.TimerHandle | None = None
        self._became_idle: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()
        self._lanes: list[Lane] = []
        self._cache: AnswerCache | None = None
        self.served = served
        self.settings = settings
        self._take_up(served, settings)

    @property
    def key(self) -> tuple[str, str]:
        """Its deployment and version."""
        return self.deployment, self.served.version

    @property
    def is_connected(self) -> bool:
        """Whether a worker can take batches."""
        return self._link is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is with the worker."""
        return not self._waiting.rows and not self._in_flight

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits for its batch."""
        return self._waiting.rows > 0

    async def until_idle(self) -> None:
        """Wait until nothing waits and nothing is with the worker."""
        self._became_idle = asyncio.Event()
        if not self.is_idle:
            await self._became_idle.wait()

    async def leave(self) -> None:
        """Send nothing more to the worker, and return when it has answered what it has, or is lost."""
        self._left, self._link = self._link, None
        self._link_gone_since = time.monotonic()
        self._left_answered.clear()
        if self._in_flight:
            await self._left_answered.wait()

    def serve(self, served: ServedVersion, settings: ServingSettings) -> None:
        """Go on with what a new table says of the version and of its deployment's settings."""
        if served.state == "loading" and self.served.inputs:
            # A manager that was started again does not know yet what the version takes. For callers it is a restart.
            served = replace(self.served, state="restarting", weight=served.weight, socket_path=served.socket_path)
        self._take_up(served, settings)
        if self._link is None and (refusal := self._refusal()) is not None:
            for question in self._waiting:
                self._fail(question, refusal)
            self._waiting.drop_answered()
        self._schedule_pump()

    def _take_up(self, served: ServedVersion, settings: ServingSettings) -> None:
        self.served = served
        self.settings = settings
        self._max_rows = (settings.max_batch_rows or served.max_batch_rows) if served.joins_rows else 1
        self._waiting.max_rows = settings.max_queue_rows or MAX_WAITING_ROWS
        self._cost = CostCurve(served.cost_curve, self._max_rows)
        if served.lanes != len(self._lanes):
            self._lanes = [Lane() for _ in range(served.lanes)]
            for in_flight in self._in_flight.values():
                in_flight.lane = 0
                self._lanes[0].batches += 1
            self._tuner = Tuner(rules_for(served.lanes))
        if settings.cache_bytes != (self._cache.bound_bytes if self._cache else 0):
            self._cache = AnswerCache(settings.cache_bytes) if settings.cache_bytes else None
        self.metrics.cache = self._cache

    def put(self, question: Question) -> None:
        """Let a question wait for its batch, unless its answer is known.

        Raises QueueFull, QueueTooLong, VersionNotReady, NoRoomToLoad, ModelUnloaded.
        """
        if self._cache is not None:
            question.cache_key = self._cache.key(question.group, question.rows, question.parts)
            known = self._cache.get(question.cache_key)
            if known is not None:
                question.answer.set_result(known)
                self.metrics.statuses["OK"] += 1
                self.metrics.total.observe(time.monotonic() - question.arrived)
                return
        if self._link is None and (refusal := self._refusal()) is not None:
            raise refusal
        self._waiting.check_room(question)
        if self.is_too_long(question.arrived, question.deadline):
            # It costs less now than once its rows were carried to the worker.
            raise too_long()
        self._waiting.put(question)
        if not self._pump_scheduled:
            self._schedule_pump()

    def is_too_long(self, now: float, deadline: float) -> bool:
        """Say whether who comes now would wait for nothing: what is before him takes most of his time already."""
        if self._waiting.rows < self._max_rows:
            return False
        seconds = self._pace.seconds_per_row * (self._waiting.rows + self._in_flight_rows)
        return seconds > _MOST_OF_THE_TIME * (deadline - now)

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
        self._in_flight_rows = 0
        self._lanes = [Lane() for _ in self._lanes]
        for in_flight in reversed(lost.values()):
            for question in reversed(in_flight.questions):
                if question.answer.done():
                    continue
                if question.attempts >= MAX_ATTEMPTS:
                    self._fail(question, WorkerLost("the engine worker ended twice while it had the request"))
                else:
                    self._retried.add(question)
                    self._waiting.put(question, first=True)

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
            self._answer(questions, reply, payload, in_flight.epoch)
        in_flight.unanswered -= reply.count
        self.metrics.compute.observe(reply.compute_seconds)
        if in_flight.unanswered <= 0:
            del self._in_flight[reply.batch]
            self._lane_answered(in_flight, reply)
            if not self._in_flight:
                self._left_answered.set()
            if self._waiting.rows:
                self._schedule_pump()
            elif self._became_idle is not None and self.is_idle:
                self._became_idle.set()

    def _lane_answered(self, in_flight: _InFlight, reply: Reply) -> None:
        now = time.monotonic()
        self._in_flight_rows -= in_flight.rows
        self._pace.answered(in_flight.rows, now, is_busy=not self.is_idle)
        if reply.count == len(in_flight.questions):
            self._cost.computed(in_flight.rows, reply.compute_seconds)
        lane = self._lanes[in_flight.lane]
        lane.batches -= 1
        if lane.batches:
            left = next(other for other in self._in_flight.values() if other.lane == in_flight.lane)
            lane.expected_end = now + self._cost.seconds(left.rows)
        self.metrics.wait.observe(max(0.0, now - in_flight.sent - reply.compute_seconds))

    def oldest_in_flight_seconds(self, now: float) -> float:
        """Return how long the batch that was sent first has been with the worker; 0 when there is none."""
        return max((now - in_flight.sent for in_flight in self._in_flight.values()), default=0.0)

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
        if self._link is None and self._waiting.rows:
            self._waiting.drop_answered()

    def to_probe(self, now: float) -> Iterator[Question]:
        """Yield the waiting questions whose callers should be asked whether they are still there."""
        for question in self._waiting:
            if now - question.probed > _PROBE_AFTER_SECONDS:
                question.probed = now
                yield question

    def fail_all(self, message: str) -> None:
        """Answer everybody with UNAVAILABLE: the front ends."""
        for question in self._all_questions():
            if not question.answer.done():
                self._fail(question, WorkerLost(message))

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

    def _schedule_pump(self) -> None:
        # After the callbacks that are already due, so that requests that arrived together leave together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while self._link is not None and self._waiting.rows:
            if self._retried and self._must_wait_for_retried():
                return
            now = time.monotonic()
            rows = Rows(self._waiting.rows, self._in_flight_rows, self._cost.enough_rows, self._max_rows)
            order = release(self._tuner.rule, self._lanes, rows, now)
            if order is None and self.settings.max_queue_delay_seconds is not None:
                order = self._overdue(self.settings.max_queue_delay_seconds, now)
            if order is None:
                return
            self._send(self._link, order, now)

    def _must_wait_for_retried(self) -> bool:
        """Say whether a request that is tried again is with the worker: if it ends another one, nobody else is hurt."""
        self._retried = {question for question in self._retried if not question.answer.done()}
        return bool(self._retried and self._in_flight)

    def _overdue(self, max_delay_seconds: float, now: float) -> Release | None:
        """Return a release for rows that were held back as long as the owner allows; else look again when they are."""
        lane = min(range(len(self._lanes)), key=lambda index: self._lanes[index].batches)
        if self._lanes[lane].batches > 1:
            return None
        left_seconds = self._waiting.oldest_arrival() + max_delay_seconds - now
        if left_seconds <= 0.0:
            return Release(lane, "delay")
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        self._delay_timer = self._loop.call_later(left_seconds, self._schedule_pump)
        return None

    def _send(self, link: BatchSender, order: Release, now: float) -> None:
        taken = self._waiting.take(self._max_rows, self._cost.enough_rows, self._end_of_next_batch(order.lane, now))
        for question in taken.expired:
            self._fail(question, DeadlineExpired("the caller's time was over before there was an answer"))
        questions = taken.questions
        if not questions:
            return
        batch = self._next_batch
        self._next_batch += 1
        for question in questions:
            question.attempts += 1
            self.metrics.queue.observe(now - question.arrived)
        self._in_flight[batch] = _InFlight(questions, taken.rows, now, order.lane, self._tuner.epoch, len(questions))
        self._in_flight_rows += taken.rows
        lane = self._lanes[order.lane]
        lane.batches += 1
        lane.expected_end = max(lane.expected_end, now) + self._cost.seconds(taken.rows)
        self.metrics.releases[order.reason] += 1
        self.metrics.batch_rows.observe(taken.rows)
        tensors, parts = _joined(questions, taken.rows, self.served.padding_id)
        link.send(Batch(batch, tuple([question.rows for question in questions]), tensors, order.lane), parts)

    def _end_of_next_batch(self, lane: int, now: float) -> float:
        """Return when a batch that is sent now will be computed: who has no time until then is not computed for.

        With a worker that has nothing else to do it is tried all the same.
        """
        if not self._in_flight:
            return now
        rows = min(self._waiting.rows, self._max_rows)
        return max(now, self._lanes[lane].expected_end) + self._cost.seconds(rows)

    def _answer(self, questions: Sequence[Question], reply: Reply, payload: memoryview, epoch: int) -> None:
        now = time.monotonic()
        rows = [question.rows for question in questions]
        columns = list(_split(reply.tensors, payload, rows))
        shapes: dict[int, tuple[tuple[int, ...], ...]] = {}
        answered = 0
        seconds = 0.0
        for index, question in enumerate(questions):
            if not question.answer.done():
                if question.rows not in shapes:
                    shapes[question.rows] = _shapes(reply.tensors, None if len(rows) == 1 else question.rows)
                answer = Answer(reply.tensors, shapes[question.rows], [column[index] for column in columns])
                question.answer.set_result(answer)
                if question.cache_key and self._cache is not None:
                    self._cache.put(question.cache_key, answer)
                total = now - question.arrived
                self.metrics.total.observe(total)
                seconds += total
                answered += 1
        self.metrics.statuses["OK"] += answered
        self._tuner.answered(epoch, answered, seconds, now)

    def _fail(self, question: Question, failure: Failure) -> None:
        if not question.answer.done():
            question.answer.set_exception(failure)
            self.metrics.statuses[status_of(failure).name] += 1

    def _all_questions(self) -> Iterator[Question]:
        yield from self._waiting
        for in_flight in self._in_flight.values():
            yield from in_flight.questions


async def drop_if_gone(question: Question) -> None:
    """Ask whether the caller is still there.

    pyvoy answers `receive` at once after the end of the body, so whether a caller hung up has to be asked for.
    """
    message = await question.receive()
    if message["type"] == "http.disconnect" and not question.answer.done():
        question.answer.set_exception(CallerGone())


def _joined(
    questions: Sequence[Question], rows: int, padding_id: int
) -> tuple[tuple[TensorHeader, ...], list[bytes | memoryview]]:
    """Return the batch's tensors and their bytes: the questions' rows one after the other, padded to the longest."""
    width = max([question.width for question in questions])
    tensors = []
    parts: list[bytes | memoryview] = []
    for index, (name, datatype, row_shape) in enumerate(questions[0].group):
        if -1 in row_shape:
            pieces = [_padded(question, question.parts[index], datatype, width, padding_id) for question in questions]
            row_shape = tuple([width if size == -1 else size for size in row_shape])
        else:
            pieces = [question.parts[index] for question in questions]
        tensors.append(TensorHeader(name, datatype, (rows, *row_shape), sum(map(len, pieces))))
        parts += pieces
    return tuple(tensors), parts


def _padded(
    question: Question, raw: bytes | memoryview, datatype: str, width: int, padding_id: int
) -> bytes | memoryview:
    """Return a question's rows with `width` elements each."""
    missing = width - question.width
    if not missing:
        return raw
    padding = pack(datatype, [padding_id]) * missing
    row_bytes = question.width * ELEMENT_SIZES[datatype]
    return b"".join(
        [part for begin in range(0, len(raw), row_bytes) for part in (raw[begin : begin + row_bytes], padding)]
    )


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

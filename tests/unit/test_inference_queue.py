"""Queueing, batching and answering, with a worker that is a list."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from maas_inference.front.failures import (
    DeadlineExpired,
    InputRefused,
    QueueFull,
    QueueTooLong,
    ServedVersionNotFound,
    VersionNotReady,
    WorkerLost,
)
from maas_inference.front.metrics import VersionMetrics
from maas_inference.front.question import Answer, CallerGone, Group, Question
from maas_inference.front.serving import Deployment
from maas_inference.front.version_queue import VersionQueue, drop_if_gone
from maas_inference.front.waiting import MAX_WAITING_ROWS
from maas_inference.table import ServedDeployment, ServedVersion, ServingSettings, Tensor
from maas_inference.wire import Batch, Refusal, Reply, TensorHeader

SERVED = ServedVersion(
    "1",
    "tiny",
    1,
    "ready",
    inputs=(Tensor("x", "UINT8", (-1, -1)),),
    outputs=(Tensor("y", "UINT8", (-1, -1)),),
    max_batch_rows=8,
)
TWO: Group = (("x", "UINT8", (2,)),)
THREE: Group = (("x", "UINT8", (3,)),)


class Worker:
    """Keeps the batches that it is sent; answers with what it got."""

    def __init__(self) -> None:
        self.batches: list[tuple[Batch, bytes]] = []
        self.has_two = asyncio.Event()

    def send(self, batch: Batch, parts: Sequence[bytes | memoryview]) -> None:
        self.batches.append((batch, b"".join(parts)))
        if len(self.batches) == 2:
            self.has_two.set()

    def close(self) -> None:
        """Nothing to hang up."""


class Caller:
    """Is there until it is not."""

    def __init__(self) -> None:
        self.is_there = True

    async def __call__(self) -> dict[str, object]:
        return {"type": "http.request" if self.is_there else "http.disconnect"}


def ask(
    queue: VersionQueue, raw: bytes, group: Group = TWO, deadline: float = 60.0, caller: Caller | None = None
) -> Question:
    now = time.monotonic()
    question = Question(
        group,
        len(raw) // group[0][2][0],
        [raw],
        arrived=now,
        deadline=now + deadline,
        receive=caller or Caller(),
        answer=asyncio.get_running_loop().create_future(),
    )
    queue.put(question)
    return question


def echo(queue: VersionQueue, batch: Batch, payload: bytes) -> None:
    tensor = TensorHeader("y", "UINT8", batch.tensors[0].shape, len(payload))
    queue.replied(Reply(batch.batch, 0, len(batch.rows), 0.001, (tensor,)), memoryview(payload))


def new_queue(
    worker: Worker | None = None, served: ServedVersion = SERVED, settings: ServingSettings | None = None
) -> VersionQueue:
    queue = VersionQueue("reviews", served, VersionMetrics(), settings or ServingSettings())
    if worker is not None:
        queue.connected(worker)
    return queue


async def turn() -> None:
    """Let everything that is due happen."""
    for _ in range(3):
        await asyncio.sleep(0)


async def raw_of(question: Question) -> bytes:
    answer: Answer = await question.answer
    return answer.raws[0]


async def test_requests_that_arrive_together_leave_together_and_get_their_own_rows() -> None:
    worker = Worker()
    queue = new_queue(worker)
    questions = [ask(queue, b"ab"), ask(queue, b"cdef"), ask(queue, b"gh")]
    await turn()
    [(batch, payload)] = worker.batches
    assert (batch.rows, payload) == ((1, 2, 1), b"abcdefgh")
    echo(queue, batch, payload)
    assert [await raw_of(question) for question in questions] == [b"ab", b"cdef", b"gh"]
    assert (await questions[1].answer).shapes == ((2, 2),)


async def test_other_shapes_never_share_a_batch() -> None:
    worker = Worker()
    queue = new_queue(worker)
    two, three = ask(queue, b"ab"), ask(queue, b"cde", THREE)
    await turn()
    assert [payload for _, payload in worker.batches] == [b"ab", b"cde"]
    for batch, payload in reversed(worker.batches):
        echo(queue, batch, payload)
    assert (await raw_of(two), await raw_of(three)) == (b"ab", b"cde")


async def test_a_model_without_row_dimension_gets_each_request_alone() -> None:
    worker = Worker()
    queue = new_queue(
        worker,
        ServedVersion("1", "tiny", 1, "ready", inputs=(Tensor("x", "UINT8", (1, -1)),), outputs=SERVED.outputs),
    )
    ask(queue, b"ab")
    ask(queue, b"cd")
    await turn()
    assert [batch.rows for batch, _ in worker.batches] == [(1,), (1,)]


async def test_at_most_two_batches_are_with_the_worker_and_none_is_larger_than_allowed() -> None:
    worker = Worker()
    queue = new_queue(worker)
    for _ in range(30):
        ask(queue, b"ab")
    await turn()
    assert [sum(batch.rows) for batch, _ in worker.batches] == [8, 8]
    echo(queue, *worker.batches[0])
    await turn()
    assert [sum(batch.rows) for batch, _ in worker.batches] == [8, 8, 8]


async def test_a_request_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    worker = Worker()
    queue = new_queue(worker)
    ask(queue, b"ab" * 20)
    ask(queue, b"ab")
    await turn()
    assert [batch.rows for batch, _ in worker.batches] == [(20,), (1,)]


async def test_who_has_no_time_left_is_not_computed_for() -> None:
    worker = Worker()
    queue = new_queue(worker)
    late, good = ask(queue, b"ab", deadline=-1), ask(queue, b"cd")
    await turn()
    assert [payload for _, payload in worker.batches] == [b"cd"]
    with pytest.raises(DeadlineExpired):
        await late.answer
    echo(queue, *worker.batches[0])
    assert await raw_of(good) == b"cd"


async def test_who_hung_up_is_not_computed_for_and_the_others_are() -> None:
    queue = new_queue()
    caller = Caller()
    gone, good = ask(queue, b"ab", caller=caller), ask(queue, b"cd")
    caller.is_there = False
    for question in list(queue.to_probe(time.monotonic() + 1)):
        await drop_if_gone(question)
    with pytest.raises(CallerGone):
        await gone.answer
    worker = Worker()
    queue.connected(worker)
    await turn()
    echo(queue, *worker.batches[0])
    assert (worker.batches[0][1], await raw_of(good)) == (b"cd", b"cd")


async def test_a_lost_worker_costs_nobody_an_answer_once_and_is_told_the_second_time() -> None:
    queue = new_queue()
    question, second = ask(queue, b"ab"), Worker()
    first = Worker()
    queue.connected(first)
    await turn()
    waiting = ask(queue, b"cd")
    queue.disconnected(first)
    assert not question.answer.done()
    queue.connected(second)
    await turn()
    assert [payload for _, payload in second.batches] == [b"ab"]
    queue.disconnected(second)
    with pytest.raises(WorkerLost):
        await question.answer
    assert not waiting.answer.done()


async def test_requests_that_are_tried_again_go_one_by_one_so_that_a_deadly_one_hurts_nobody_else() -> None:
    queue = new_queue()
    questions = [ask(queue, raw) for raw in (b"ab", b"!!", b"cd")]
    for _ in range(4):
        worker = Worker()
        queue.connected(worker)
        await turn()
        while worker.batches:
            batch, payload = worker.batches.pop(0)
            if b"!!" in payload:
                queue.disconnected(worker)
                break
            echo(queue, batch, payload)
            await turn()
    assert [await raw_of(questions[0]), await raw_of(questions[2])] == [b"ab", b"cd"]
    with pytest.raises(WorkerLost):
        await questions[1].answer


async def test_a_manager_that_is_started_again_is_a_restart_for_callers() -> None:
    queue = new_queue()
    queue.serve(ServedVersion("1", "tiny", 4, "loading"), ServingSettings())
    assert (queue.served.state, queue.served.inputs, queue.served.weight) == ("restarting", SERVED.inputs, 4)
    ask(queue, b"ab")


async def test_nobody_waits_longer_than_ten_seconds_for_a_worker() -> None:
    queue = new_queue()
    question = ask(queue, b"ab")
    queue.expire(time.monotonic() + 9)
    assert not question.answer.done()
    queue.expire(time.monotonic() + 11)
    with pytest.raises(WorkerLost):
        await question.answer


async def test_a_version_that_was_never_ready_is_refused_at_once() -> None:
    queue = new_queue(served=ServedVersion("1", "tiny", 1, "loading"))
    with pytest.raises(VersionNotReady):
        ask(queue, b"ab")


async def test_a_full_queue_refuses_and_says_when_to_retry() -> None:
    queue = new_queue()
    ask(queue, b"ab" * MAX_WAITING_ROWS)
    with pytest.raises(QueueFull) as caught:
        ask(queue, b"ab")
    assert caught.value.retry_after_seconds > 0


async def test_a_refusal_reaches_only_the_request_that_it_is_for() -> None:
    worker = Worker()
    queue = new_queue(worker)
    bad, good = ask(queue, b"ab"), ask(queue, b"cd")
    await turn()
    [(batch, _)] = worker.batches
    queue.replied(Reply(batch.batch, 0, 1, 0.0, (), Refusal(True, "INPUT_VALUE_INVALID", "no")), memoryview(b""))
    queue.replied(Reply(batch.batch, 1, 1, 0.0, (TensorHeader("y", "UINT8", (1, 2), 2),)), memoryview(b"cd"))
    with pytest.raises(InputRefused) as caught:
        await bad.answer
    assert caught.value.reason == "INPUT_VALUE_INVALID"
    assert await raw_of(good) == b"cd"
    assert queue.is_idle


async def test_shares_follow_the_weights_exactly() -> None:
    queues = {}
    for number, weight in (("1", 5), ("2", 3), ("3", 0)):
        served = ServedVersion(number, "tiny", weight, "ready", inputs=SERVED.inputs, outputs=SERVED.outputs)
        queues[number] = new_queue(Worker(), served)
    deployment = Deployment(ServedDeployment("reviews", tuple(queue.served for queue in queues.values())), queues)
    chosen = [deployment.choose("").served.version for _ in range(80)]
    assert (chosen.count("1"), chosen.count("2"), chosen.count("3")) == (50, 30, 0)
    assert deployment.choose("3").served.version == "3"
    with pytest.raises(ServedVersionNotFound):
        deployment.choose("4")


async def test_while_one_version_is_away_the_others_take_its_share() -> None:
    there, away = new_queue(Worker()), new_queue(served=ServedVersion("2", "tiny", 99, "restarting"))
    deployment = Deployment(ServedDeployment("reviews", (there.served, away.served)), {"1": there, "2": away})
    assert {deployment.choose("").served.version for _ in range(20)} == {"1"}


STEEP = ((1, 1.0), (8, 1.01))
RAGGED: Group = (("x", "UINT8", (-1,)),)


def ask_ragged(queue: VersionQueue, *rows: bytes) -> Question:
    now = time.monotonic()
    question = Question(
        RAGGED,
        len(rows),
        [b"".join(rows)],
        arrived=now,
        deadline=now + 60,
        receive=Caller(),
        answer=asyncio.get_running_loop().create_future(),
        width=len(rows[0]),
    )
    queue.put(question)
    return question


async def test_shorter_rows_are_padded_to_the_longest_of_their_batch() -> None:
    worker = Worker()
    queue = new_queue(worker, replace(SERVED, padded_input="x", padding_id=0x2E, cost_curve=STEEP))
    ask_ragged(queue, b"abc")
    ask_ragged(queue, b"d", b"e")
    ask_ragged(queue, b"fg")
    await turn()
    [(batch, payload)] = worker.batches
    assert (batch.rows, batch.tensors[0].shape, payload) == ((1, 1, 2), (4, 3), b"abcfg.d..e..")


async def test_rows_of_one_length_are_sent_as_they_came() -> None:
    worker = Worker()
    queue = new_queue(worker, replace(SERVED, padded_input="x", padding_id=0x2E))
    ask_ragged(queue, b"abc")
    await turn()
    assert worker.batches[0][1] == b"abc"


async def test_an_equal_request_is_answered_from_the_cache_without_the_worker() -> None:
    worker = Worker()
    queue = new_queue(worker, settings=ServingSettings(cache_bytes=1 << 20))
    first = ask(queue, b"ab")
    await turn()
    echo(queue, *worker.batches[0])
    assert await raw_of(first) == await raw_of(ask(queue, b"ab")) == b"ab"
    ask(queue, b"cd")
    await turn()
    assert [payload for _, payload in worker.batches] == [b"ab", b"cd"]


async def test_a_request_that_was_refused_is_not_kept_in_the_cache() -> None:
    worker = Worker()
    queue = new_queue(worker, settings=ServingSettings(cache_bytes=1 << 20))
    bad = ask(queue, b"ab")
    await turn()
    queue.replied(Reply(0, 0, 1, 0.0, (), Refusal(True, "INPUT_VALUE_INVALID", "no")), memoryview(b""))
    with pytest.raises(InputRefused):
        await bad.answer
    ask(queue, b"ab")
    await turn()
    assert len(worker.batches) == 2


async def test_the_owners_settings_bound_batches_and_the_queue() -> None:
    worker = Worker()
    queue = new_queue(worker, settings=ServingSettings(max_batch_rows=3, max_queue_rows=5))
    for _ in range(5):
        ask(queue, b"ab")
    with pytest.raises(QueueFull):
        ask(queue, b"ab")
    await turn()
    assert [sum(batch.rows) for batch, _ in worker.batches] == [3, 2]


async def test_rows_are_held_back_no_longer_than_the_owner_allows() -> None:
    worker = Worker()
    queue = new_queue(worker, replace(SERVED, cost_curve=STEEP), ServingSettings(max_queue_delay_seconds=0.01))
    ask(queue, b"ab")
    await turn()
    ask(queue, b"cd")
    await turn()
    assert len(worker.batches) == 1
    await asyncio.wait_for(worker.has_two.wait(), 10)
    assert queue.metrics.releases == {"idle": 1, "delay": 1}


async def test_who_would_wait_longer_than_he_can_is_refused_at_once() -> None:
    worker = Worker()
    queue = new_queue(worker)
    for _ in range(24):
        ask(queue, b"ab")
    await turn()
    echo(queue, *worker.batches[0])
    await asyncio.sleep(0.02)  # what the next batch takes, as the queue sees it
    echo(queue, *worker.batches[1])
    for _ in range(100):
        ask(queue, b"ab")
    with pytest.raises(QueueTooLong) as caught:
        ask(queue, b"ab", deadline=0.02)
    assert 0 < caught.value.retry_after_seconds <= 1
    ask(queue, b"ab", deadline=60.0)


async def test_two_lanes_are_computed_side_by_side() -> None:
    worker = Worker()
    queue = new_queue(worker, replace(SERVED, lanes=2))
    for _ in range(16):
        ask(queue, b"ab")
    await turn()
    assert [(sum(batch.rows), batch.lane) for batch, _ in worker.batches] == [(8, 0), (8, 1)]


async def test_how_long_a_batch_has_been_with_the_worker_is_known() -> None:
    worker = Worker()
    queue = new_queue(worker)
    assert queue.oldest_in_flight_seconds(time.monotonic()) == 0
    ask(queue, b"ab")
    await turn()
    assert queue.oldest_in_flight_seconds(time.monotonic() + 5) >= 5
    echo(queue, *worker.batches[0])
    assert queue.oldest_in_flight_seconds(time.monotonic()) == 0

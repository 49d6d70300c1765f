"""Who waits, who goes first, and who shares a batch."""

import asyncio
from collections.abc import Sequence

import pytest

from maas_inference.front.failures import QueueFull
from maas_inference.front.question import Group, Question
from maas_inference.front.waiting import BULK_PATIENCE_SECONDS, Waiting

TEXT: Group = (("text", "BYTES", ()),)
FLAGS: Group = (("flags", "BOOL", (3,)),)


async def nobody() -> dict[str, object]:
    return {"type": "http.disconnect"}


def question(
    raw: bytes, arrived: float = 0.0, *, rows: int = 1, group: Group = TEXT, bulk: bool = False, deadline: float = 1e9
) -> Question:
    answer = asyncio.get_running_loop().create_future()
    return Question(
        group, rows, [raw], arrived=arrived, deadline=deadline, receive=nobody, answer=answer, bulk=bulk
    )  # fmt: skip


def taken(waiting: Waiting, *, max_rows: int = 8, enough_rows: int = 4, now: float = 0.0) -> Sequence[bytes]:
    return [bytes(one.parts[0]) for one in waiting.take(max_rows, enough_rows, now).questions]


async def test_interactive_requests_go_before_bulk_ones_that_came_first() -> None:
    waiting = Waiting(100)
    waiting.put(question(b"bulk", 0.0, bulk=True, rows=8))
    waiting.put(question(b"now", 0.5, rows=8))
    assert taken(waiting) == [b"now"]
    assert taken(waiting) == [b"bulk"]


async def test_bulk_requests_are_never_passed_for_ever() -> None:
    waiting = Waiting(100)
    waiting.put(question(b"bulk", 0.0, bulk=True, rows=8))
    waiting.put(question(b"late", BULK_PATIENCE_SECONDS + 0.1, rows=8))
    assert taken(waiting) == [b"bulk"]


async def test_bulk_requests_fill_the_room_that_interactive_ones_leave() -> None:
    waiting = Waiting(100)
    waiting.put(question(b"bulk", 0.0, bulk=True, rows=3))
    waiting.put(question(b"much", 0.0, bulk=True, rows=6))
    waiting.put(question(b"soon", 0.1, rows=4))
    assert taken(waiting, max_rows=8, enough_rows=8) == [b"soon", b"bulk"]
    assert waiting.rows == 6


async def test_bulk_requests_leave_room_in_the_queue_for_interactive_ones() -> None:
    waiting = Waiting(8)
    waiting.put(question(b"bulk", rows=6, bulk=True))
    with pytest.raises(QueueFull):
        waiting.check_room(question(b"more", bulk=True))
    waiting.check_room(question(b"now!", rows=2))
    with pytest.raises(QueueFull):
        waiting.check_room(question(b"now!", rows=3))


async def test_texts_of_about_one_length_share_a_batch_while_there_are_enough() -> None:
    waiting = Waiting(100)
    for number in range(4):
        waiting.put(question(b"s" * 20, number))
        waiting.put(question(b"l" * 2000, number + 0.5))
    assert taken(waiting) == [b"s" * 20] * 4
    assert taken(waiting) == [b"l" * 2000] * 4
    assert waiting.rows == 0


async def test_a_batch_that_is_not_worth_its_while_takes_other_lengths_too_nearest_first() -> None:
    waiting = Waiting(100)
    for number, length in enumerate((20, 3000, 150)):
        waiting.put(question(b"x" * length, number))
    assert [len(raw) for raw in taken(waiting, enough_rows=2)] == [20, 150]
    assert [len(raw) for raw in taken(waiting)] == [3000]


async def test_rows_of_one_shape_are_never_divided_by_length() -> None:
    waiting = Waiting(100)
    waiting.put(question(bytes(3), group=FLAGS))
    waiting.put(question(bytes(300), rows=100, group=FLAGS))
    assert len(waiting.take(200, 1, 0.0).questions) == 2


async def test_who_cannot_be_answered_in_time_is_left_out() -> None:
    waiting = Waiting(100)
    waiting.put(question(b"late", deadline=5.0))
    waiting.put(question(b"good", deadline=50.0))
    found = waiting.take(8, 4, answered_at=5.0)
    assert [bytes(one.parts[0]) for one in found.questions] == [b"good"]
    assert [bytes(one.parts[0]) for one in found.expired] == [b"late"]
    assert waiting.rows == 0

"""Whom to let go for memory, as a pure function; what is known of a version's size."""

from pathlib import Path

import pytest

from maas.names import DeploymentName, VersionName
from maas_inference.manager.memory import (
    MODEL_FACTOR,
    WORKER_BYTES,
    Holder,
    Key,
    MemoryBook,
    default_budget_bytes,
    leavers,
    used_bytes,
)


def key(name: str) -> Key:
    return DeploymentName(name), VersionName("m", 1)


def holder(name: str, size: int, idle: float = 0.0, *, leaving: bool = False, may_leave: bool = True) -> Holder:
    return Holder(key(name), size, is_leaving=leaving, may_leave=may_leave, idle_seconds=idle)


@pytest.mark.parametrize(
    ("need", "holders", "going"),
    [
        (40, [holder("a", 60)], ""),  # there is room
        (41, [holder("a", 60, 5)], "a"),
        (41, [holder("a", 30, 5), holder("b", 30, 9)], "b"),  # the one that was used longest ago
        (90, [holder("a", 30, 5), holder("b", 30, 9), holder("c", 30, 7)], "bca"),
        (60, [holder("a", 60, 5), holder("b", 40, leaving=True)], "a"),
        (40, [holder("a", 60, 5), holder("b", 40, leaving=True)], ""),  # its memory comes back by itself
        (41, [holder("a", 60, may_leave=False)], None),
        (80, [holder("a", 60, 5, may_leave=False), holder("b", 40, 9)], None),  # nobody goes for nothing
        (101, [], None),
        (0, [holder("a", 60, 3), holder("b", 60, 9)], "b"),  # they grew
    ],
)
def test_the_least_recently_used_go_as_far_as_it_takes(need: int, holders: list[Holder], going: str | None) -> None:
    found = leavers(need, 100, holders)
    assert found == (None if going is None else tuple(key(name) for name in going))


def test_what_is_in_use_or_was_just_now_does_not_go() -> None:
    holders = [holder("a", 60, 0.5), holder("b", 60, 0.0)]
    assert leavers(1, 100, holders, idle_seconds=1.0) is None
    assert leavers(1, 100, holders) == (key("a"),)
    assert leavers(90, 100, holders) is None


def test_all_that_is_held_counts() -> None:
    assert used_bytes([holder("a", 1), holder("b", 2, leaving=True), holder("c", 4, may_leave=False)]) == 7


def test_a_version_is_expected_to_take_the_most_it_took(tmp_path: Path) -> None:
    version = VersionName("m", 1)
    book = MemoryBook(tmp_path / "new" / "sizes.json")
    assert book.expected_bytes(version, 1000) == WORKER_BYTES + 1000 * MODEL_FACTOR
    book.note(version, 123_456)
    book.note(version, 100)
    book.save()
    assert MemoryBook(tmp_path / "new" / "sizes.json").expected_bytes(version, 1000) == 123_456


def test_damaged_sizes_are_no_sizes(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_bytes(b"[1")
    assert MemoryBook(tmp_path / "sizes.json").expected_bytes(VersionName("m", 1), 0) == WORKER_BYTES


def test_the_default_budget_is_a_part_of_the_hosts_memory() -> None:
    assert 0 < default_budget_bytes() < 2**60

"""The supervisor with real processes, small ones in place of the cluster's."""

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maas.supervisor.cluster import free_port
from maas.supervisor.failures import AlreadyRunning, CannotStart, NotRunning
from maas.supervisor.home import (
    ClusterState,
    Home,
    ProcessState,
    lock_holder,
    locked,
    read_state,
    running_state,
    start_ticks,
)
from maas.supervisor.run import detach, stop_cluster

STAND_IN = Path(__file__).with_name("stand_in_cluster.py")


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if lock_holder(Home(tmp_path)) is not None:
        stop_cluster(tmp_path)


def start(folder: Path, *, port: int = 0, start_seconds: float = 10.0) -> ClusterState:
    return detach(
        folder,
        (
            *(sys.executable, str(STAND_IN), "--home", str(folder)),
            *("--port", str(port), "--start-seconds", str(start_seconds)),
        ),
        timeout=30,
    )


def process(folder: Path, name: str) -> ProcessState:
    state = read_state(Home(folder))
    assert state is not None
    return next(process for process in state.processes if process.name == name)


def alive(pid: int) -> bool:
    return start_ticks(pid) != 0


def numbers_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_start_returns_when_all_processes_are_ready_and_stop_when_all_have_ended(folder: Path) -> None:
    state = start(folder)
    assert state.ready
    assert [(one.name, one.state, one.restarts) for one in state.processes] == [
        ("front", "ready", 0),
        ("middle", "ready", 0),
        ("store", "ready", 0),
    ]
    assert all(alive(one.pid) for one in state.processes)
    assert stop_cluster(folder) == state.pid
    assert not any(alive(one.pid) for one in (*state.processes, state))
    assert running_state(Home(folder)) is None
    assert not Home(folder).default_run_dir.exists()


def test_processes_stop_in_the_stated_order(folder: Path) -> None:
    start(folder)
    stop_cluster(folder)
    assert (folder / "stopped").read_text().split() == ["front", "middle", "store"]


def test_a_killed_process_is_started_again(folder: Path) -> None:
    start(folder)
    for count in (1, 2):
        killed = process(folder, "middle").pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda killed=killed: process(folder, "middle").pid not in (0, killed))  # type: ignore[misc]
        wait_for(lambda: process(folder, "middle").state == "ready")
        assert process(folder, "middle").restarts == count
    assert process(folder, "store").restarts == 0
    assert "SIGKILL" in Home(folder).log_file("supervisor").read_text()


def test_a_process_that_hangs_is_killed_and_started_again(folder: Path) -> None:
    start(folder)
    hung = process(folder, "middle").pid
    os.kill(hung, signal.SIGSTOP)
    wait_for(lambda: process(folder, "middle").pid not in (0, hung))
    wait_for(lambda: process(folder, "middle").state == "ready")
    assert process(folder, "middle").restarts == 1
    assert not alive(hung)
    assert "did not answer" in Home(folder).log_file("supervisor").read_text()


def test_what_a_killed_process_had_started_ends_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MIDDLE", "parent")
    start(folder)
    os.kill(process(folder, "middle").pid, signal.SIGKILL)
    wait_for(lambda: len(numbers_in(folder / "grandchildren")) == 2)
    assert not alive(numbers_in(folder / "grandchildren")[0])


def test_a_process_that_cannot_start_stops_all_and_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MIDDLE", "cannot start")
    with pytest.raises(CannotStart, match="middle: the disk is upside down; turn it"):
        start(folder)
    assert not any(alive(pid) for pid in numbers_in(folder / "pids"))
    assert lock_holder(Home(folder)) is None


def test_a_process_that_is_not_ready_in_time_stops_all_and_shows_its_last_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_STORE", "never ready")
    with pytest.raises(CannotStart, match="store: still thinking") as caught:
        start(folder, start_seconds=1.0)
    assert caught.value.reason == "NOT_READY_IN_TIME"
    assert not any(alive(pid) for pid in numbers_in(folder / "pids"))


def test_a_process_that_does_not_end_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FRONT", "stubborn")
    state = start(folder)
    stop_cluster(folder)
    assert not any(alive(one.pid) for one in state.processes)
    assert (folder / "stopped").read_text().split() == ["middle", "store"]


def test_a_second_signal_kills_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = start(folder)
    os.kill(state.processes[0].pid, signal.SIGSTOP)  # will not answer SIGTERM
    os.kill(state.pid, signal.SIGINT)
    wait_for(lambda: "stopping" in Home(folder).log_file("supervisor").read_text())
    os.kill(state.pid, signal.SIGINT)
    wait_for(lambda: not any(alive(one.pid) for one in (*state.processes, state)), seconds=5)


def test_two_clusters_never_share_a_home(folder: Path) -> None:
    state = start(folder)
    with pytest.raises(CannotStart, match=f"pid {state.pid}; stop it with maas down") as caught:
        start(folder)
    assert caught.value.reason == "ALREADY_RUNNING"
    with pytest.raises(AlreadyRunning), locked(Home(folder)):
        pass
    assert process(folder, "front").pid == state.processes[0].pid


def test_the_processes_of_a_killed_supervisor_end_and_the_next_start_works(folder: Path) -> None:
    state = start(folder)
    os.kill(state.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(one.pid) for one in state.processes))
    assert running_state(Home(folder)) is None
    with pytest.raises(NotRunning):
        stop_cluster(folder)
    again = start(folder)
    assert again.ready
    assert again.pid != state.pid


def test_a_port_in_use_is_named_with_what_to_do(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=f"127.0.0.1:{port}.*--port") as caught:
            start(folder, port=port)
    assert caught.value.reason == "PORT_IN_USE"
    assert start(folder, port=free_port()).ready


def test_only_the_owner_enters_the_run_folder(folder: Path) -> None:
    state = start(folder)
    assert stat.S_IMODE(Path(state.run_dir).stat().st_mode) == 0o700


def test_a_home_with_a_long_path_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    try:
        state = start(folder)
        run_dir = Path(state.run_dir)
        assert len(str(run_dir)) < 40
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        os.kill(state.pid, signal.SIGKILL)
        wait_for(lambda: lock_holder(Home(folder)) is None)
        assert start(folder).run_dir != str(run_dir)
        assert not run_dir.exists()
    finally:
        stop_cluster(folder)


def test_what_a_process_writes_is_in_its_log(folder: Path) -> None:
    start(folder)
    assert Home(folder).log_file("store").read_text() == "store is here\n"


def test_a_home_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotStart, match=r"cannot write to .*--home") as caught:
        start(tmp_path / "file" / "home")
    assert caught.value.reason == "HOME_NOT_WRITABLE"

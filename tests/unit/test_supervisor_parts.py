"""The supervisor's parts that need no process: back-off, logs, the home folder, what each process is told."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maas.supervisor.child import Backoff
from maas.supervisor.cluster import PROCESS_NAMES, cluster_specs
from maas.supervisor.failures import HomeNotWritable
from maas.supervisor.home import (
    ClusterState,
    Home,
    ProcessState,
    end_leftovers,
    lock_holder,
    locked,
    make_folders,
    read_state,
    remove_run_files,
    start_ticks,
    write_state,
)
from maas.supervisor.log_file import BoundedLog, older


def test_waits_double_up_to_five_seconds() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.0) for _ in range(9)]
    assert waits[0] <= 0.1
    assert waits[1:] == [min(5.0, wait * 2) for wait in waits[:-1]]
    assert waits[-1] == 5.0


def test_a_process_that_lived_ten_seconds_is_started_again_at_once() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after(9.9)
    assert backoff.after(10.0) <= 0.1
    assert backoff.after(0.0) <= 0.2


def test_a_log_stays_within_two_files_of_its_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "x.log", max_bytes=100)
    for number in range(50):
        log.write(b"line %02d\n" % number)
    log.close()
    kept = older(tmp_path / "x.log").read_bytes() + (tmp_path / "x.log").read_bytes()
    assert 100 <= len(kept) <= 200
    assert kept.endswith(b"line 49\n")
    assert kept == b"".join(b"line %02d\n" % number for number in range(50))[-len(kept) :]


def test_a_log_goes_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = BoundedLog(tmp_path / "x.log")
        log.write(text)
        log.close()
    assert (tmp_path / "x.log").read_bytes() == b"first\nsecond\n"


def test_what_a_log_could_not_take_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    log = BoundedLog(folder / "x.log")
    log.write(b"lost\n")  # there is no folder
    folder.mkdir()
    log.write(b"kept\n")
    log.close()
    assert (folder / "x.log").read_bytes() == b"[5 bytes could not be written here]\nkept\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home with its folders made; the one for sockets may be elsewhere, for tests have long paths."""
    home = Home(tmp_path / "home")
    make_folders(home)
    yield home
    remove_run_files(home)


def state_of(home: Home, processes: tuple[ProcessState, ...] = ()) -> ClusterState:
    return ClusterState(os.getpid(), 1, 8080, str(home.default_run_dir), 1.5, True, processes)


def test_a_state_reads_as_it_was_written(home: Home) -> None:
    state = state_of(home, (ProcessState("registry", 7, 8, "ready", 1, 2.5, "ended"),))
    write_state(home, state)
    assert read_state(home) == state


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 99}', '{"schema": 1, "processes": [{}]}'])
def test_a_state_that_is_not_understood_is_no_state(home: Home, content: str) -> None:
    home.state_file.write_text(content)
    assert read_state(home) is None
    assert end_leftovers(home) == []


def test_a_process_that_only_has_the_number_of_an_old_one_is_left_alone(home: Home) -> None:
    stranger = ProcessState("registry", os.getpid(), start_ticks(os.getpid()) + 1, "ready", 0, 0.0)
    write_state(home, state_of(home, (stranger,)))
    assert end_leftovers(home) == []


def test_a_folder_that_is_not_ours_is_never_removed(home: Home, tmp_path: Path) -> None:
    remove_run_files(home)
    precious = tmp_path / "precious"
    precious.mkdir()
    home.run_pointer.write_text(json.dumps({"run_dir": str(precious)}))
    remove_run_files(home)
    assert precious.exists()


def test_a_socket_folder_that_cannot_be_noted_down_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    home = Home(tmp_path / ("a-path-that-is-too-long-for-sockets-" * 3))
    home.run_pointer.with_name(f".{home.run_pointer.name}.part").mkdir(parents=True)  # so it cannot be written
    with pytest.raises(HomeNotWritable):
        make_folders(home)
    assert list(temporary.iterdir()) == []


def test_the_lock_names_its_holder_and_is_given_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert lock_holder(home) is None
    with locked(home):
        assert lock_holder(home) == os.getpid()
    assert lock_holder(home) is None


def test_a_folder_in_a_file_is_a_sentence_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeNotWritable, match=r"cannot write to .*choose another folder with --home"):
        make_folders(Home(tmp_path / "file" / "home"))


def test_each_process_listens_at_its_own_socket_and_knows_the_others(tmp_path: Path) -> None:
    specs = {
        spec.name: spec for spec in cluster_specs(Home(tmp_path), Path("/run/maas"), 8123, {"MAAS_LOG_LEVEL": "ERROR"})
    }
    assert tuple(specs) == PROCESS_NAMES
    listens = [spec.environment["MAAS_LISTEN"] for name, spec in specs.items() if name != "envoy"]
    assert len(set(listens)) == len(listens)
    for name, spec in specs.items():
        told = spec.environment
        assert told["MAAS_REGISTRY_ADDRESS"] == specs["registry"].environment["MAAS_LISTEN"]
        assert told["MAAS_PUBLIC_LISTEN"] == "127.0.0.1:8123"
        assert told["MAAS_LOG_LEVEL"] == "ERROR"
        assert all(len(value) < 107 for key, value in told.items() if value.startswith("unix:")), name
    assert specs["envoy"].environment["MAAS_LISTEN"] == specs["gateway"].environment["MAAS_LISTEN"]
    targets = dict(target.split("=") for target in specs["gateway"].environment["MAAS_METRICS_TARGETS"].split(","))
    assert targets["rollout"] == specs["rollout"].environment["MAAS_METRICS_LISTEN"]
    assert "MAAS_METRICS_LISTEN" not in specs["gateway"].environment


def test_what_is_said_to_the_registry_is_said_to_nobody_else(tmp_path: Path) -> None:
    secret = {"MAAS_REGISTRY_DATABASE_URL": "postgresql://ann:secret@host/registry"}
    for spec in cluster_specs(Home(tmp_path), tmp_path, 1, secret):
        assert ("secret" in str(spec.environment)) == (spec.name == "registry")


def test_callers_stop_before_those_they_call(tmp_path: Path) -> None:
    stages = {spec.name: spec.stop_stage for spec in cluster_specs(Home(tmp_path), tmp_path, 1, {})}
    order = sorted(stages, key=lambda name: (stages[name], name))
    assert order == ["envoy", "gateway", "inference", "compression", "training", "rollout", "registry"]

"""What a person sees who starts a cluster where it cannot run."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_under_test import Cluster, free_port


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="maas-start-") as folder:
        yield Path(folder)


def test_a_port_in_use_is_one_sentence_and_leaves_nothing_behind(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = Cluster(home, port).maas(
            "up", "--home", str(home), "--port", str(port), "--detach", check=False, timeout=90
        )
    assert result.returncode == 78
    assert str(port) in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr
    assert str(home) not in subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout


def test_a_home_that_cannot_be_written_is_one_sentence(home: Path) -> None:
    occupied = home / "a-file"
    occupied.write_text("")
    result = Cluster(occupied, free_port()).maas("up", "--home", str(occupied), "--detach", check=False, timeout=90)
    assert result.returncode == 78
    assert str(occupied) in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_a_second_up_on_the_same_home_says_who_is_there(cluster: Cluster) -> None:
    result = cluster.maas("up", "--home", str(cluster.home), "--port", str(free_port()), "--detach", check=False)
    assert result.returncode != 0
    assert "already running" in result.stderr


def test_a_call_without_a_cluster_says_how_to_start_one(home: Path) -> None:
    result = Cluster(home, free_port()).maas("models", "ls", check=False)
    assert result.returncode == 69
    assert "maas up" in result.stderr

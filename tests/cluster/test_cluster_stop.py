"""`maas down` lets the requests that are being answered come to their end."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

from cluster_under_test import small_package, started_cluster, until
from maas.client import Client, Prediction


def test_a_request_that_is_being_answered_is_answered_when_the_cluster_stops(tmp_path: Path) -> None:
    with started_cluster() as cluster:
        package = small_package(tmp_path / "package", 1)
        cluster.maas("models", "push", "reviews", str(package.folder))
        cluster.maas("deploy", "reviews", "reviews")
        answers: list[Prediction] = []
        with Client(cluster.endpoint, timeout=20, retry_seconds=0) as client:
            worker = client.replica().loaded_versions[0].pid
            os.kill(worker, signal.SIGSTOP)
            asking = threading.Thread(target=lambda: answers.extend(client.predict("reviews", ["a good film"])))
            asking.start()
            until(lambda: client.replica().front_count == 1, 5, "the front is there")
            time.sleep(0.3)  # nobody outside tells when a request has reached the worker
            stopping = threading.Thread(target=lambda: cluster.maas("down", "--home", str(cluster.home)))
            stopping.start()
            until(lambda: is_refused(cluster.endpoint), 10, "no new connection is taken")
            os.kill(worker, signal.SIGCONT)
            asking.join(10)
            stopping.join(30)
        assert len(answers) == 1


def is_refused(endpoint: str) -> bool:
    host, _, port = endpoint.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False

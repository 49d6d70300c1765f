"""`python -m maas.supervisor --home DIR --port PORT --notify FD`: what `maas up --detach` leaves in the background."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from maas.supervisor.child import EXIT_CANNOT_START
from maas.supervisor.failures import SupervisorError
from maas.supervisor.home import Home
from maas.supervisor.log_file import BoundedLog
from maas.supervisor.run import MakeSpecs, Notifier, embedded_cluster, run_cluster


def main(make_specs: Callable[[], MakeSpecs] = lambda: embedded_cluster(os.environ)) -> None:
    """Leave the caller, run a cluster, and tell over the descriptor when it is ready or why it is not."""
    parser = argparse.ArgumentParser(prog="maas.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start-seconds", type=float, default=60.0)
    parser.add_argument("--notify", type=int, required=True)
    given = parser.parse_args()
    if os.fork():
        os._exit(0)
    notifier = Notifier(given.notify)
    log = BoundedLog(Home(given.home).log_file("supervisor"))

    def say(sentence: str) -> None:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {sentence}\n".encode())

    try:
        run_cluster(
            given.home,
            given.port,
            make_specs(),
            say=say,
            on_ready=lambda _: notifier.tell(),
            start_seconds=given.start_seconds,
        )
    except SupervisorError as error:
        say(error.message)
        notifier.tell(error)
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()

"""A cluster of small real processes for the supervisor's tests: run as a supervisor, or as one of its processes.

What the processes do is told by the environment: STAND_IN_<NAME>=behaviour.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maas.supervisor.child import ProcessSpec
    from maas.supervisor.home import Home

NAMES = ("front", "middle", "store")
"""In the order in which they are to be stopped."""


def make_specs(home: Home, run_dir: Path, port: int) -> list[ProcessSpec]:
    from maas.supervisor.child import ProcessSpec  # not above: the processes start without it, and fast

    def spec(stage: int, name: str) -> ProcessSpec:
        marker = run_dir / f"{name}.ready"

        async def is_ready() -> bool:
            return is_alive(marker)

        return ProcessSpec(
            name=name,
            command=(sys.executable, "-S", __file__, name, str(home.folder), str(marker)),
            environment=os.environ,
            ready=is_ready,
            stop_stage=stage,
            stop_seconds=0.3 if behaviour(name) == "stubborn" else 8.0,
            silent_seconds=0.3,
            probe_seconds=0.1,
        )

    return [spec(stage, name) for stage, name in enumerate(NAMES)]


def is_alive(marker: Path) -> bool:
    # The pid in it tells this process's marker from that of the one before. A stopped process answers nobody.
    try:
        status = Path(f"/proc/{marker.read_text() or 0}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "T"


def behaviour(name: str) -> str:
    return os.environ.get(f"STAND_IN_{name.upper()}", "")


def be_process(name: str, folder: Path, marker: Path) -> None:
    def stop(*_: object) -> None:
        with (folder / "stopped").open("a") as file:
            file.write(f"{name}\n")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour(name) == "stubborn" else stop)
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    match behaviour(name):
        case "cannot start":
            print(f"{name}: the disk is upside down; turn it", file=sys.stderr)
            sys.exit(78)
        case "never ready":
            print("still thinking", flush=True)
        case "parent":
            nobody = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            with (folder / "grandchildren").open("a") as file:
                file.write(f"{nobody.pid}\n")
            marker.write_text(str(os.getpid()))
        case _:
            print(f"{name} is here", flush=True)
            marker.write_text(str(os.getpid()))
    while True:
        time.sleep(600)


if __name__ == "__main__":
    if sys.argv[1] in NAMES:
        be_process(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        from maas.supervisor.__main__ import main

        main(lambda: make_specs)

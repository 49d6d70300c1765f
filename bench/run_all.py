"""make bench-all: every bench in turn, each with an end; all tables in bench/RESULTS.md. 4 hours the first time."""

import signal
import subprocess
import sys
import time
from pathlib import Path

# Script -> the minutes after which it is ended.
BENCHES = {
    "serving": 20,
    "self_tuning": 12,
    "bare_engine": 4,
    "memory": 4,
    "overload": 4,
    "mixing": 5,
    "streams": 4,
    "registry": 30,
    "compression": 180,
}


def main() -> None:
    """Run them; what fails is told at the end and does not keep the others from running."""
    failed = []
    for name, minutes in BENCHES.items():
        begun = time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--write"]
        with subprocess.Popen(command) as bench:
            try:
                if bench.wait(minutes * 60):
                    failed.append(name)
            except subprocess.TimeoutExpired:
                failed.append(f"{name} (more than {minutes} minutes)")
                bench.send_signal(signal.SIGINT)  # it ends what it has started
        print(f"# {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Becomes a command that the kernel ends as soon as the supervisor ends, however that ends.

Run as a script, `python launch.py SUPERVISOR_PID COMMAND...`, because a process with threads can do nothing safely
between fork and exec. Imports nothing of ours, so that it takes a few milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, and become the command unless the supervisor is gone already."""
    supervisor, command = int(sys.argv[1]), sys.argv[2:]
    # SIGKILL: every process of the cluster can be killed at any time, and one that hangs must not stay.
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit("the kernel does not tie processes together")
    if os.getppid() != supervisor:
        sys.exit("the supervisor ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

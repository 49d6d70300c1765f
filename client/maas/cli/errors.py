"""How a command that failed says so: one sentence on stderr, and an exit status that a script can act on."""

import socket
import sys

from maas.errors import MaasError, UnavailableError

EXIT_FAILED = 1
EXIT_UNREACHABLE = 69
"""EX_UNAVAILABLE of sysexits.h: nothing answers at the endpoint."""
EXIT_CANNOT_START = 78
"""EX_CONFIG of sysexits.h: a person has to help before a cluster can start."""
EXIT_INTERRUPTED = 130


class ClusterUnreachable(MaasError):
    """Nothing answers at the endpoint."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(
            f"no cluster answers at {endpoint}; start one with maas up --detach, or name another with --endpoint",
            code="UNAVAILABLE",
            reason="CLUSTER_UNREACHABLE",
        )


def exit_status(error: MaasError) -> int:
    """Return the exit status for an error."""
    if isinstance(error, ClusterUnreachable):
        return EXIT_UNREACHABLE
    from maas.supervisor.failures import CannotStart

    return EXIT_CANNOT_START if isinstance(error, CannotStart) else EXIT_FAILED


def show_error(error: MaasError, *, verbose: bool) -> None:
    """Write what is wrong, and on demand how to look it up."""
    print(f"maas: {error.message}", file=sys.stderr)
    for field, description in error.violations:
        print(f"  {field}: {description}", file=sys.stderr)
    if error.retry_after_seconds is not None:
        print(f"  try again in {error.retry_after_seconds:g} s", file=sys.stderr)
    if verbose:
        # An error that was found before anything was sent has no status.
        known = {
            "status": error.code if error.code != "UNKNOWN" else "",
            "reason": error.reason,
            "resource": error.resource_name,
        }
        known |= {"request id": error.request_id, **error.metadata}
        for name, value in known.items():
            if value:
                print(f"  {name}: {value}", file=sys.stderr)


def is_unreachable(error: UnavailableError, endpoint: str) -> bool:
    """Return whether the error only means that nobody listens at the endpoint."""
    if error.reason:  # somebody gave it
        return False
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return False
    except (OSError, ValueError):
        return True

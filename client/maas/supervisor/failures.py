"""Why a cluster cannot start or stop; each message says what to do."""

from maas.errors import MaasError


class SupervisorError(MaasError):
    """The cluster on this machine cannot be started or stopped."""

    reason = "SUPERVISOR_FAILED"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="FAILED_PRECONDITION", reason=type(self).reason)


class CannotStart(SupervisorError):
    """A process cannot start, and trying again will not help: a person has to."""

    reason = "CANNOT_START"


class AlreadyRunning(CannotStart):
    """Another supervisor holds the home folder."""

    reason = "ALREADY_RUNNING"


class HomeNotWritable(CannotStart):
    """The home folder cannot be made or written to."""

    reason = "HOME_NOT_WRITABLE"


class PortTaken(CannotStart):
    """Somebody else listens on the port."""

    reason = "PORT_IN_USE"


class NotReadyInTime(CannotStart):
    """A process did not become ready within the time for starting."""

    reason = "NOT_READY_IN_TIME"


class NotRunning(SupervisorError):
    """There is nothing to stop."""

    reason = "NOT_RUNNING"

"""What inference replicas say of the versions they serve, and what follows from it for a deployment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from maas.names import DeploymentName, VersionName
from maas_rollout.domain.deployments import PENDING, DeploymentState, Standing, Target
from maas_runtime.failures import Overloaded

SILENT_AFTER_SECONDS = 15.0
MAX_REPLICAS = 1000


class TooManyReplicas(Overloaded):
    """More replicas report than a cluster may have."""

    reason = "TOO_MANY_REPLICAS"


class TargetState(Enum):
    """A version on one replica. LOADING -> READY | FAILED; READY -> RESTARTING -> READY | FAILED; FAILED -> LOADING.

    Any of them -> UNLOADED -> LOADING.
    """

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """A version as one replica sees it; `message` says why it is not READY.

    UNLOADED without a message is as good as READY: it is loaded when somebody asks for it.
    """

    replica: str
    version: VersionName
    state: TargetState
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Report:
    time: float
    statuses: Mapping[DeploymentName, tuple[TargetStatus, ...]]


class Replicas:
    """The last report of each replica, in memory; one that is silent for 15 s is forgotten.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float], silent_after_seconds: float = SILENT_AFTER_SECONDS) -> None:
        self._clock = clock
        self._silent_after_seconds = silent_after_seconds
        self._started = clock()
        self._reports: dict[str, _Report] = {}

    def report(
        self, replica: str, statuses: Mapping[DeploymentName, tuple[TargetStatus, ...]]
    ) -> Sequence[DeploymentName]:
        """Take a replica's report, and return the deployments of which it says something else than before.

        Raises TooManyReplicas.
        """
        self._forget_silent()
        if replica not in self._reports and len(self._reports) >= MAX_REPLICAS:
            raise TooManyReplicas(f"{MAX_REPLICAS} replicas report already")
        known = self._reports.get(replica)
        self._reports[replica] = _Report(self._clock(), dict(statuses))
        if known is None:
            return sorted(statuses)
        return sorted(name for name in {*statuses, *known.statuses} if statuses.get(name) != known.statuses.get(name))

    def forget(self, deployment: DeploymentName) -> None:
        """Drop what was said of a deployment that has ended."""
        for replica, report in self._reports.items():
            left = {name: statuses for name, statuses in report.statuses.items() if name != deployment}
            self._reports[replica] = _Report(report.time, left)

    def statuses(self, deployment: DeploymentName) -> Sequence[TargetStatus]:
        """Return what each replica says of each version, ordered by replica and version."""
        self._forget_silent()
        found = [status for report in self._reports.values() for status in report.statuses.get(deployment, ())]
        return sorted(found, key=lambda status: (status.replica, status.version))

    def standing(self, deployment: DeploymentName, targets: Sequence[Target], before: Standing) -> Standing:
        """Return where a deployment with these targets is, when it was last known to be at `before`."""
        statuses = self.statuses(deployment)
        settling = self._clock() - self._started < self._silent_after_seconds
        return standing_of(targets, sorted(self._reports), statuses, before, settling=settling)

    def _forget_silent(self) -> None:
        oldest = self._clock() - self._silent_after_seconds
        self._reports = {replica: report for replica, report in self._reports.items() if report.time > oldest}


def standing_of(
    targets: Sequence[Target],
    replicas: Sequence[str],
    statuses: Sequence[TargetStatus],
    before: Standing,
    *,
    settling: bool,
) -> Standing:
    """Return where a deployment is, from what should be, the replicas that report, and what they say of it.

    `settling`: this process began so short a time ago that replicas may not have had their turn to report. What was
    known before then stands, rather than an alarm over every deployment whenever rollout is started again.
    """
    said = {(status.replica, status.version): status for status in statuses}
    of_targets = [
        (replica, target.version, said.get((replica, target.version))) for replica in replicas for target in targets
    ]
    if all(status is None for _, _, status in of_targets):
        if before.state is DeploymentState.PENDING:
            return PENDING
        if not replicas and settling:
            return before
        if not replicas:
            return Standing(DeploymentState.LOADING, "no inference replica reports: is maas_inference running?")
    for replica, version, status in of_targets:
        if status is not None and status.state is TargetState.FAILED:
            return Standing(DeploymentState.FAILED, _sentence(f"{version} cannot be loaded on {replica}", status))
    for replica, version, status in of_targets:
        if status is not None and status.state is TargetState.RESTARTING:
            return Standing(DeploymentState.LOADING, _sentence(f"{version} is being restarted on {replica}", status))
    for replica, version, status in of_targets:
        if status is not None and status.state is TargetState.UNLOADED and status.message:
            return Standing(DeploymentState.LOADING, _sentence(f"{version} is not loaded on {replica}", status))
    for replica, version, status in of_targets:
        if status is None:
            return Standing(DeploymentState.LOADING, f"{version} is being loaded on {replica}")
        if status.state not in (TargetState.READY, TargetState.UNLOADED):
            return Standing(DeploymentState.LOADING, _sentence(f"{version} is being loaded on {replica}", status))
    return Standing(DeploymentState.READY)


def _sentence(beginning: str, status: TargetStatus) -> str:
    return f"{beginning}: {status.message}" if status.message else beginning

"""Messages to domain values and back."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from maas.names import DeploymentName, VersionName, parse_version_or_alias
from maas.rollout.v1 import deployment_pb2
from maas.rollout.v1 import rollout_service_pb2 as messages
from maas.signatures import PublicKey, PublicKeyInvalid
from maas_rollout.domain.deployments import DeploymentState, Event, Target, WantedTarget
from maas_rollout.domain.feed import Changes
from maas_rollout.domain.replicas import TargetState, TargetStatus
from maas_rollout.domain.rollout import LiveDeployment
from maas_rollout.domain.serving import LoadPolicy, ServingSettings
from maas_runtime.failures import FieldViolation, InvalidInput

_DEPLOYMENT_STATES = {
    DeploymentState.PENDING: deployment_pb2.DEPLOYMENT_STATE_PENDING,
    DeploymentState.LOADING: deployment_pb2.DEPLOYMENT_STATE_LOADING,
    DeploymentState.READY: deployment_pb2.DEPLOYMENT_STATE_READY,
    DeploymentState.FAILED: deployment_pb2.DEPLOYMENT_STATE_FAILED,
}
_TARGET_STATES = {
    TargetState.LOADING: deployment_pb2.TARGET_STATE_LOADING,
    TargetState.READY: deployment_pb2.TARGET_STATE_READY,
    TargetState.RESTARTING: deployment_pb2.TARGET_STATE_RESTARTING,
    TargetState.FAILED: deployment_pb2.TARGET_STATE_FAILED,
    TargetState.UNLOADED: deployment_pb2.TARGET_STATE_UNLOADED,
}
_LOAD_POLICIES = {
    LoadPolicy.ALWAYS: deployment_pb2.LOAD_POLICY_ALWAYS,
    LoadPolicy.ON_DEMAND: deployment_pb2.LOAD_POLICY_ON_DEMAND,
}
_LOAD_POLICIES_BACK = {wire: policy for policy, wire in _LOAD_POLICIES.items()}
_TARGET_STATES_BACK = {wire: state for state, wire in _TARGET_STATES.items()}


class TrustedKeyInvalid(InvalidInput):
    """A text is no public key that can check signatures."""

    reason = "TRUSTED_KEY_INVALID"


class TargetStateMissing(InvalidInput):
    """A report does not say the state of a version."""

    reason = "TARGET_STATE_MISSING"


def wanted_from_proto(targets: Iterable[deployment_pb2.Target]) -> list[WantedTarget]:
    """Return the targets that are asked for. Raises NameInvalid."""
    return [WantedTarget(parse_version_or_alias(target.version), target.weight) for target in targets]


def trusted_from_proto(keys: Iterable[str]) -> tuple[PublicKey, ...]:
    """Return the keys, each once, in the order of their fingerprints. Raises TrustedKeyInvalid."""
    found = {}
    for number, pem in enumerate(keys):
        try:
            key = PublicKey.parse(pem)
        except PublicKeyInvalid as error:
            field = f"deployment.trusted_keys[{number}]"
            raise TrustedKeyInvalid(f"{field}: {error}", violations=(FieldViolation(field, str(error)),)) from error
        found[key.fingerprint] = key
    return tuple(found[fingerprint] for fingerprint in sorted(found))


def serving_from_proto(message: deployment_pb2.ServingSettings) -> ServingSettings:
    """Return the settings."""
    return ServingSettings(
        max_batch_rows=message.max_batch_rows,
        max_queue_delay=message.max_queue_delay.ToTimedelta() if message.HasField("max_queue_delay") else None,
        max_queue_rows=message.max_queue_rows,
        cache_bytes=message.cache_bytes,
        load_policy=_LOAD_POLICIES_BACK.get(message.load_policy, LoadPolicy.ALWAYS),
        engine=message.engine,
        worker_memory_bytes=message.worker_memory_bytes,
        compute_timeout=message.compute_timeout.ToTimedelta() if message.HasField("compute_timeout") else None,
    )


def deployment_to_proto(live: LiveDeployment, *, with_statuses: bool = True) -> deployment_pb2.Deployment:
    """Return the message."""
    return deployment_pb2.Deployment(
        name=str(live.deployment.name),
        targets=_targets_to_proto(live.deployment.targets),
        state=_DEPLOYMENT_STATES[live.standing.state],
        message=live.standing.message,
        statuses=[_status_to_proto(status) for status in live.statuses] if with_statuses else None,
        etag=live.deployment.etag,
        create_time=_timestamp(live.deployment.create_time),
        update_time=_timestamp(live.deployment.update_time),
        serving=_serving_to_proto(live.deployment.serving),
        trusted_keys=[key.pem for key in live.deployment.trusted_keys],
    )


def event_to_proto(event: Event) -> deployment_pb2.DeploymentEvent:
    """Return the message."""
    return deployment_pb2.DeploymentEvent(
        deployment=str(event.deployment),
        time=_timestamp(event.time),
        action=event.action.value,
        targets_before=_targets_to_proto(event.targets_before),
        targets_after=_targets_to_proto(event.targets_after),
        actor=event.actor,
        reason=event.reason,
        trusted_keys_before=event.trusted_before,
        trusted_keys_after=event.trusted_after,
    )


def changes_to_proto(changes: Changes, deployments: Iterable[LiveDeployment]) -> messages.WatchDeploymentsResponse:
    """Return the message; `deployments` are those of the changes, with where they are now."""
    return messages.WatchDeploymentsResponse(
        snapshot=changes.snapshot,
        deployments=[deployment_to_proto(live, with_statuses=False) for live in deployments],
        deleted=[str(name) for name in changes.deleted],
        resume_token=str(changes.point),
    )


def report_from_proto(
    request: messages.ReportReplicaRequest,
) -> dict[DeploymentName, tuple[TargetStatus, ...]]:
    """Return what the replica says of each deployment. Raises NameInvalid or TargetStateMissing."""
    said: dict[DeploymentName, tuple[TargetStatus, ...]] = {}
    for report in request.deployments:
        name = DeploymentName.parse(report.deployment)
        said[name] = said.get(name, ()) + tuple(
            [_status_from_proto(request.replica, status) for status in report.statuses]
        )
    return said


def _serving_to_proto(serving: ServingSettings) -> deployment_pb2.ServingSettings:
    return deployment_pb2.ServingSettings(
        max_batch_rows=serving.max_batch_rows,
        max_queue_delay=_duration(serving.max_queue_delay),
        max_queue_rows=serving.max_queue_rows,
        cache_bytes=serving.cache_bytes,
        load_policy=_LOAD_POLICIES[serving.load_policy],
        engine=serving.engine,
        worker_memory_bytes=serving.worker_memory_bytes,
        compute_timeout=_duration(serving.compute_timeout),
    )


def _targets_to_proto(targets: Sequence[Target]) -> list[deployment_pb2.Target]:
    return [deployment_pb2.Target(version=str(target.version), weight=target.weight) for target in targets]


def _status_to_proto(status: TargetStatus) -> deployment_pb2.TargetStatus:
    return deployment_pb2.TargetStatus(
        replica=status.replica,
        version=str(status.version),
        state=_TARGET_STATES[status.state],
        message=status.message,
    )


def _status_from_proto(replica: str, message: deployment_pb2.TargetStatus) -> TargetStatus:
    state = _TARGET_STATES_BACK.get(message.state)
    if state is None:
        raise TargetStateMissing(
            f"the state of {message.version} is not stated",
            violations=(FieldViolation("deployments.statuses.state", "has to be stated"),),
        )
    return TargetStatus(replica, VersionName.parse(message.version), state, message.message)


def _duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    duration = Duration()
    duration.FromTimedelta(value)
    return duration


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp

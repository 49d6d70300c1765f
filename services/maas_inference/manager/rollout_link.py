"""The manager as rollout's client: it watches what is wanted and reports what is."""

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from maas.names import DeploymentName, NameInvalid, VersionName
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas_inference.manager.desired import Desired, WantedDeployment, WeightedVersion, WorkerSettings
from maas_inference.manager.keeper import Keeping
from maas_inference.manager.replica import UNLOADED, Replica
from maas_inference.table import ServingSettings, VersionState
from maas_runtime.channel import translated_failures
from maas_runtime.failures import Failure

if TYPE_CHECKING:  # the stubs know this class, the generated code does not
    from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceAsyncStub

logger = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
"""Between two reports, so that many changes at once become few."""
_REPORT_TIMEOUT_SECONDS = 2.0
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)

_WIRE_STATES: dict[VersionState, deployment_pb2.TargetState.ValueType] = {
    "loading": deployment_pb2.TARGET_STATE_LOADING,
    "ready": deployment_pb2.TARGET_STATE_READY,
    "restarting": deployment_pb2.TARGET_STATE_RESTARTING,
    "failed": deployment_pb2.TARGET_STATE_FAILED,
    "unloaded": deployment_pb2.TARGET_STATE_UNLOADED,
}


async def watch(rollout: "RolloutServiceAsyncStub", replica: Replica) -> None:
    """Tell the replica each change of what is wanted, until cancelled; without rollout it keeps the last."""
    failures = 0
    while True:
        try:
            with translated_failures():
                request = rollout_service_pb2.WatchDeploymentsRequest(resume_token=replica.desired.resume_token)
                async for message in rollout.WatchDeployments(request):
                    failures = 0
                    replica.want(changed(replica.desired, message))
        except Failure as failure:
            if failures == 0:
                logger.warning("rollout is away", extra={"detail": failure.message})
        await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
        failures += 1


async def report(rollout: "RolloutServiceAsyncStub", replica: Replica, name: str) -> None:
    """Say what is served, after each change and every 5 s, until cancelled."""
    while True:
        stepped = replica.next_step()
        try:
            await rollout.ReportReplica(report_of(replica, name), timeout=_REPORT_TIMEOUT_SECONDS)
        except Failure as failure:
            logger.debug("report not taken", extra={"detail": failure.message})
            await asyncio.sleep(_RETRY_SECONDS[-1])
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stepped.wait(), REPORT_SECONDS)
        await asyncio.sleep(_PAUSE_SECONDS)


def changed(desired: Desired, message: rollout_service_pb2.WatchDeploymentsResponse) -> Desired:
    """Return what is wanted after a message. A deployment that this program cannot read is left out and logged."""
    deployments: dict[DeploymentName, WantedDeployment] = {}
    deleted = [name for name in desired.deployments if str(name) in message.deleted]
    for deployment in message.deployments:
        try:
            deployments[DeploymentName.parse(deployment.name)] = wanted_from_proto(deployment)
        except NameInvalid as error:
            logger.error("a deployment cannot be read", extra={"deployment": deployment.name, "detail": str(error)})
    return desired.changed(
        is_snapshot=message.snapshot,
        deployments=deployments,
        deleted=deleted,
        resume_token=message.resume_token,
    )


def wanted_from_proto(deployment: deployment_pb2.Deployment) -> WantedDeployment:
    """Return what a deployment wants. Raises NameInvalid."""
    serving = deployment.serving
    return WantedDeployment(
        tuple(WeightedVersion(VersionName.parse(target.version), target.weight) for target in deployment.targets),
        ServingSettings(
            max_batch_rows=serving.max_batch_rows,
            max_queue_delay_seconds=_seconds(serving.max_queue_delay) if serving.HasField("max_queue_delay") else None,
            max_queue_rows=serving.max_queue_rows,
            cache_bytes=serving.cache_bytes,
        ),
        WorkerSettings(
            on_demand=serving.load_policy == deployment_pb2.LOAD_POLICY_ON_DEMAND,
            engine=serving.engine,
            memory_bytes=serving.worker_memory_bytes,
            compute_timeout_seconds=_seconds(serving.compute_timeout),
            trusted_keys=tuple(deployment.trusted_keys),
        ),
    )


def report_of(replica: Replica, name: str) -> rollout_service_pb2.ReportReplicaRequest:
    """Return the state of each wanted version."""
    request = rollout_service_pb2.ReportReplicaRequest(replica=name)
    for deployment, wanted in sorted(replica.desired.deployments.items()):
        statuses = request.deployments.add(deployment=str(deployment)).statuses
        for target in wanted.targets:
            keeper = replica.keepers.get((deployment, target.version))
            state, message = _told(keeper.keeping if keeper else Keeping(), on_demand=wanted.workers.on_demand)
            statuses.add(replica=name, version=str(target.version), state=_WIRE_STATES[state], message=message)
    return request


def _told(keeping: Keeping, *, on_demand: bool) -> tuple[VersionState, str]:
    """Return what rollout is told. Of a version on demand not that it comes and goes, which is as it should be."""
    if on_demand and keeping.report is not None and keeping.state != "failed" and keeping.refusal != UNLOADED:
        return ("ready", "") if keeping.state == "ready" else ("unloaded", "")
    return keeping.state, keeping.message


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9

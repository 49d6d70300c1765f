"""Follows rollout: what deployments there are, from the stored state on and through every lost connection."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import grpc

from maas.names import DeploymentName
from maas.rollout.v1 import rollout_service_pb2, rollout_service_pb2_grpc
from maas_gateway.domain.deployments import KnownDeployments

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class Store(Protocol):
    """Keeps what is known over a restart."""

    def load(self) -> KnownDeployments:
        """Return what was saved last."""
        ...

    def save(self, known: KnownDeployments) -> None:
        """Keep it."""
        ...


class DeploymentWatch:
    """Knows the deployments and tells of each change."""

    def __init__(self, channel: grpc.aio.Channel, store: Store, changed: Callable[[KnownDeployments], None]) -> None:
        self._rollout = rollout_service_pb2_grpc.RolloutServiceStub(channel)
        self._store = store
        self._changed = changed
        self._known = store.load()

    @property
    def known(self) -> KnownDeployments:
        """What is known now."""
        return self._known

    async def run(self) -> None:
        """Follow until cancelled. While rollout is away, what was known last goes on being true."""
        reachable = True
        while True:
            try:
                request = rollout_service_pb2.WatchDeploymentsRequest(resume_token=self._known.resume_token)
                async for message in self._rollout.WatchDeployments(request):
                    reachable = True
                    self._take(message)
            except grpc.aio.AioRpcError as error:
                if reachable:
                    logger.warning("rollout is away", extra={"status": error.code().name, "detail": error.details()})
                reachable = False
            await asyncio.sleep(_RETRY_SECONDS)

    def _take(self, message: rollout_service_pb2.WatchDeploymentsResponse) -> None:
        before = self._known
        self._known = before.after(
            snapshot=message.snapshot,
            present=(DeploymentName.parse(deployment.name).deployment_id for deployment in message.deployments),
            deleted=(DeploymentName.parse(name).deployment_id for name in message.deleted),
            resume_token=message.resume_token,
        )
        if self._known != before:
            self._store.save(self._known)
        if self._known.ids != before.ids:
            self._changed(self._known)

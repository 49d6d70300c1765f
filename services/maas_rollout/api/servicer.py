"""RolloutService over gRPC: check, one domain call, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import fields, replace

from google.protobuf import empty_pb2

from maas.names import DeploymentName
from maas.rollout.v1 import deployment_pb2
from maas.rollout.v1 import rollout_service_pb2 as messages
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceServicer
from maas_rollout.api.messages import (
    changes_to_proto,
    deployment_to_proto,
    event_to_proto,
    report_from_proto,
    serving_from_proto,
    trusted_from_proto,
    wanted_from_proto,
)
from maas_rollout.domain.feed import Feed, ResumePoint
from maas_rollout.domain.rollout import Author, Rollout
from maas_rollout.domain.serving import ServingSettings
from maas_runtime.interceptor import Context
from maas_runtime.paging import cut_page, page_size_or_default, read_page_token
from maas_runtime.validation import mask_paths

SERVING_FIELDS = tuple(field.name for field in fields(ServingSettings))


class RolloutServicer(RolloutServiceServicer):
    """RolloutService, answered by a Rollout and its Feed."""

    def __init__(self, rollout: Rollout, feed: Feed) -> None:
        self._rollout = rollout
        self._feed = feed

    async def CreateDeployment(
        self, request: messages.CreateDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        live = await self._rollout.create(
            DeploymentName(request.deployment_id),
            wanted_from_proto(request.deployment.targets),
            Author(request.actor, request.reason),
            serving_from_proto(request.deployment.serving),
            trusted_from_proto(request.deployment.trusted_keys),
        )
        return deployment_to_proto(live)

    async def GetDeployment(
        self, request: messages.GetDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        return deployment_to_proto(await self._rollout.get(DeploymentName.parse(request.name)))

    async def ListDeployments(
        self, request: messages.ListDeploymentsRequest, context: Context
    ) -> messages.ListDeploymentsResponse:
        query, size = "deployments", page_size_or_default(request.page_size)
        after = read_page_token(query, request.page_token, DeploymentName.parse)
        found = await self._rollout.list(after, size + 1)
        page = cut_page(query, found, size, key=lambda live: live.deployment.name)
        return messages.ListDeploymentsResponse(
            deployments=[deployment_to_proto(live) for live in page.items], next_page_token=page.next_page_token
        )

    async def UpdateDeployment(
        self, request: messages.UpdateDeploymentRequest, context: Context
    ) -> deployment_pb2.Deployment:
        paths = _mask_paths(request)
        asked = serving_from_proto(request.deployment.serving)
        changes = {field: getattr(asked, field) for field in SERVING_FIELDS if not paths.isdisjoint(_covering(field))}
        live = await self._rollout.update(
            DeploymentName.parse(request.deployment.name),
            wanted_from_proto(request.deployment.targets) if "targets" in paths else None,
            request.deployment.etag,
            Author(request.actor, request.reason),
            change_serving=lambda present: replace(present, **changes),
            trusted_keys=trusted_from_proto(request.deployment.trusted_keys) if "trusted_keys" in paths else None,
        )
        return deployment_to_proto(live)

    async def DeleteDeployment(self, request: messages.DeleteDeploymentRequest, context: Context) -> empty_pb2.Empty:
        await self._rollout.delete(DeploymentName.parse(request.name), Author(request.actor, request.reason))
        return empty_pb2.Empty()

    async def ListDeploymentEvents(
        self, request: messages.ListDeploymentEventsRequest, context: Context
    ) -> messages.ListDeploymentEventsResponse:
        name, size = DeploymentName.parse(request.parent), page_size_or_default(request.page_size)
        query = f"{name}/events"
        before = read_page_token(query, request.page_token, _event_number)
        found = await self._rollout.list_events(name, before, size + 1)
        page = cut_page(query, found, size, key=lambda event: event.number)
        return messages.ListDeploymentEventsResponse(
            deployment_events=[event_to_proto(event) for event in page.items], next_page_token=page.next_page_token
        )

    async def WatchDeployments(
        self, request: messages.WatchDeploymentsRequest, context: Context
    ) -> AsyncIterator[messages.WatchDeploymentsResponse]:
        async with aclosing(self._feed.watch(ResumePoint.parse(request.resume_token))) as watch:
            async for changes in watch:
                yield changes_to_proto(changes, map(self._rollout.live, changes.deployments))

    async def ReportReplica(
        self, request: messages.ReportReplicaRequest, context: Context
    ) -> messages.ReportReplicaResponse:
        await self._rollout.report(request.replica, report_from_proto(request))
        return messages.ReportReplicaResponse()


def _mask_paths(request: messages.UpdateDeploymentRequest) -> set[str]:
    """Return what is to be changed. Raises UpdateMaskInvalid."""
    if not request.update_mask.paths:
        sent = {field.name for field, _ in request.deployment.ListFields()}
        return {"targets"} | (sent & {"serving", "trusted_keys"})
    serving = {f"serving.{field}" for field in SERVING_FIELDS}
    return mask_paths(request.update_mask, {"targets", "trusted_keys", "serving", *serving})


def _covering(field: str) -> tuple[str, str]:
    """Return the paths that change a field of the serving settings."""
    return "serving", f"serving.{field}"


def _event_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text!r} is not the number of an event")
    return int(text)

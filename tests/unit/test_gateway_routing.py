"""Where requests go: the pure functions from what there is to what Envoy is sent."""

from dataclasses import replace
from pathlib import Path

import pytest
from envoy.config.route.v3 import route_pb2

from maas_gateway.api.contract import OIP_SERVICE, SERVICE_FILES, reflected, rest_services, services
from maas_gateway.api.listener import EmbeddedFront, ListenerSettings, listener_for
from maas_gateway.api.local_replies import LOCAL_REPLIES
from maas_gateway.api.resources import Resources, ResourceType, resources_for
from maas_gateway.domain.health import ALL, HealthTable, ServiceUnknown
from maas_gateway.domain.routing import snapshot_for
from maas_gateway.domain.snapshot import (
    CallPolicy,
    DeploymentRoute,
    Forward,
    Match,
    MatchKind,
    Retry,
    Route,
    SnapshotInvalid,
    Stage,
)
from maas_gateway.domain.topology import FRONT, Topology, Upstream

PROTOS = Path(__file__).resolve().parents[2] / "protos" / "maas"
TOPOLOGY = Topology(
    services=services(),
    upstreams=tuple(Upstream(process, f"unix:/run/{process}.sock") for process in SERVICE_FILES),
    gateway_address="unix:/run/gateway.sock",
    gateway_http_address="unix:/run/gateway-http.sock",
)
SPLIT = replace(TOPOLOGY, fronts=("10.0.0.1:8000", "front.example:8000"))
FRONT_CONFIGURATION = {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
    "filter_name": "pyvoy",
    "terminal_filter": True,
}


def all_resources(topology: Topology, *deployments: str) -> Resources:
    listener = ListenerSettings(
        "127.0.0.1:8080", topology.services, EmbeddedFront({}, {}, FRONT_CONFIGURATION) if topology.embedded else None
    )
    return resources_for(snapshot_for(topology, deployments).checked(), listener_for(listener))


def route_named(topology: Topology, name: str) -> Route:
    (found,) = [route for route in snapshot_for(topology, ()).routes if route.name == name]
    return found


@pytest.mark.parametrize("topology", [TOPOLOGY, SPLIT])
def test_both_topologies_have_no_problems(topology: Topology) -> None:
    assert snapshot_for(topology, ["reviews", "other"]).problems() == ()


def test_problems_of_a_snapshot_are_all_told() -> None:
    snapshot = snapshot_for(SPLIT, ["reviews"])
    route = snapshot.routes[-1]
    lost = replace(route, name="lost", action=Forward("nowhere"))
    twice = DeploymentRoute("reviews", FRONT, CallPolicy(1, 1, Retry.NEVER))
    broken = replace(
        snapshot,
        routes=(*snapshot.routes, lost, lost),
        clusters=(*snapshot.clusters, replace(snapshot.clusters[0], name="empty", addresses=())),
        deployment_routes=(twice, twice),
        deployment_matches=(),
    )
    assert set(broken.problems()) == {
        "route lost is there 2 times",
        "deployment reviews is there 2 times",
        "cluster empty has no address",
        "route lost leads to the unknown cluster nowhere",
        "deployments have routes, but no path leads to them",
    }
    with pytest.raises(SnapshotInvalid):
        broken.checked()


def test_the_listener_stays_the_same_whatever_is_deployed() -> None:
    for topology in (TOPOLOGY, SPLIT):
        before, after = all_resources(topology), all_resources(topology, "reviews")
        assert before[ResourceType.LISTENER] == after[ResourceType.LISTENER]
        assert before[ResourceType.CLUSTER] == after[ResourceType.CLUSTER]


def test_a_deployment_changes_routes_only_where_fronts_are_elsewhere() -> None:
    routes = ResourceType.ROUTES
    assert all_resources(TOPOLOGY)[routes].version == all_resources(TOPOLOGY, "reviews")[routes].version
    assert all_resources(SPLIT)[routes].version != all_resources(SPLIT, "reviews")[routes].version


def test_versions_are_of_the_content_and_not_of_the_order() -> None:
    assert all_resources(SPLIT, "a", "b") == all_resources(SPLIT, "b", "a", "b")


def test_clusters_are_sent_before_what_leads_to_them() -> None:
    assert list(ResourceType) == [ResourceType.CLUSTER, ResourceType.LISTENER, ResourceType.ROUTES]


def test_deployments_are_looked_up_in_a_map() -> None:
    (packed,) = all_resources(SPLIT, *(f"d{number}" for number in range(100)))[ResourceType.ROUTES].resources
    configuration = route_pb2.RouteConfiguration()
    packed.Unpack(configuration)
    (host,) = configuration.virtual_hosts
    (of_inference,) = host.matcher.matcher_list.matchers
    assert len(of_inference.on_match.matcher.matcher_tree.exact_match_map.map) == 100
    assert not host.routes


@pytest.mark.parametrize("name", ["infer", "infer-stream", "rest-inference", "predict"])
def test_inference_is_answered_by_the_front_wherever_it_is(name: str) -> None:
    assert Stage.FRONT in route_named(TOPOLOGY, name).stages
    assert route_named(SPLIT, name).action == Forward(FRONT)


def test_a_path_that_is_not_matched_exactly_is_guarded() -> None:
    """The front would never answer one that is not text."""
    for route in snapshot_for(TOPOLOGY, ()).routes:
        if Stage.FRONT in route.stages:
            assert (Stage.FRONT_GUARD in route.stages) == (route.match.kind is not MatchKind.EXACT)


def test_streams_have_no_limit_but_on_silence() -> None:
    for name in ("RegistryService/UploadBlob", "RegistryService/DownloadBlob"):
        route = route_named(TOPOLOGY, f"/maas.registry.v1.{name}")
        assert route.policy.timeout_seconds is None
        assert route.policy.idle_seconds > 60


def test_only_what_changes_nothing_is_sent_again_after_it_was_received() -> None:
    for service in services():
        policies = {
            route.match.text: route.policy
            for route in snapshot_for(TOPOLOGY, ()).routes
            if route.match.text.startswith(f"/{service.full_name}/") and route.match.kind is not MatchKind.PATTERN
        }
        assert policies[f"/{service.full_name}/"].retry is Retry.UNSENT
    upload = route_named(TOPOLOGY, "/maas.registry.v1.RegistryService/UploadBlob")
    download = route_named(TOPOLOGY, "/maas.registry.v1.RegistryService/DownloadBlob")
    assert (upload.policy.retry, download.policy.retry) == (Retry.UNSENT, Retry.REPEATABLE)
    reads = route_named(TOPOLOGY, "maas.registry.v1.RegistryService reads")
    assert reads.policy.retry is Retry.REPEATABLE
    assert "GetModel" in reads.match.text
    assert "Create" not in reads.match.text


def test_every_service_of_the_contract_has_a_route() -> None:
    defined = {
        f"{line.split()[1].rstrip(';')}"
        for file in PROTOS.glob("*/v1/*_service.proto")
        for line in file.read_text().splitlines()
        if line.startswith("package ")
    }
    assert {name.rpartition(".")[0] for name in rest_services()} == defined
    prefixes = {route.match for route in snapshot_for(TOPOLOGY, ()).routes}
    for service in services():
        assert Match(MatchKind.PREFIX, f"/{service.full_name}/") in prefixes


def test_the_inference_protocol_is_reflected_under_its_public_name_only() -> None:
    names, pool = reflected()
    assert OIP_SERVICE in names
    method = pool.FindServiceByName(OIP_SERVICE).methods_by_name["ModelInfer"]
    assert method.input_type.full_name == "inference.ModelInferRequest"
    tensors = method.input_type.fields_by_name["inputs"].message_type
    assert tensors is not None
    assert tensors.full_name.startswith("inference.")
    with pytest.raises(KeyError):
        pool.FindServiceByName("maas.oip.v2.GRPCInferenceService")


def test_reasons_of_local_replies_are_unique() -> None:
    reasons = [reply.reason for reply in LOCAL_REPLIES]
    assert len(set(reasons)) == len(reasons)


def test_health_of_all_is_asked_of_every_process_once() -> None:
    table = HealthTable.of(TOPOLOGY)
    assert table.questions(ALL) == dict.fromkeys((upstream.address for upstream in TOPOLOGY.upstreams), "")
    assert table.questions(OIP_SERVICE) == {"unix:/run/inference.sock": OIP_SERVICE}
    with pytest.raises(ServiceUnknown):
        table.questions("maas.nothing.v1.Nothing")

"""What an Envoy is sent, and when: subscriptions, their stream, and the deployments behind them."""

import json
import logging
from pathlib import Path

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from prometheus_client import CollectorRegistry

from maas_gateway.api.discovery import DiscoveryMetrics, EnvoyStream
from maas_gateway.api.resources import Resources, ResourceType, TypedResources
from maas_gateway.domain.deployments import KnownDeployments
from maas_gateway.domain.subscription import Reply, Request, Subscription
from maas_gateway.storage.deployments_file import DeploymentsFile

ALL: frozenset[str] = frozenset()


def asked(version: str = "", nonce: str = "", names: frozenset[str] = ALL, error: str = "") -> Request:
    return Request(version, nonce, names, error)


def sent(version: str, nonce: str) -> Subscription:
    subscription, reply = Subscription().received(asked())
    assert reply is Reply.FIRST
    return subscription.sent(version, nonce)


def test_nothing_is_sent_before_it_is_asked_for() -> None:
    assert not Subscription().wants("v1")


def test_a_new_envoy_is_sent_what_there_is() -> None:
    subscription, _ = Subscription().received(asked())
    assert subscription.wants("v1")


def test_an_envoy_that_comes_back_with_the_present_version_is_sent_nothing() -> None:
    subscription, reply = Subscription().received(asked(version="v1"))
    assert reply is Reply.FIRST
    assert not subscription.wants("v1")
    assert subscription.wants("v2")


def test_one_message_at_a_time_is_on_its_way() -> None:
    subscription = sent("v1", "1")
    assert not subscription.wants("v2")
    taken, reply = subscription.received(asked("v1", "1"))
    assert reply is Reply.TAKEN
    assert taken.working_version == "v1"
    assert taken.wants("v2")
    assert not taken.wants("v1")


def test_what_was_refused_is_not_sent_again_but_the_next_version_is() -> None:
    first, _ = sent("v1", "1").received(asked("v1", "1"))
    refused, reply = first.sent("v2", "2").received(asked("v1", "2", error="no such cluster"))
    assert reply is Reply.REFUSED
    assert refused.working_version == "v1"
    assert not refused.wants("v2")
    assert refused.wants("v3")


def test_a_reply_to_an_older_message_changes_nothing() -> None:
    subscription = sent("v2", "2")
    assert subscription.received(asked("v1", "1")) == (subscription, Reply.STALE)


def test_asking_for_more_names_is_answered_with_the_same_version() -> None:
    taken, _ = Subscription().received(asked(names=frozenset({"a"})))
    taken, _ = taken.sent("v1", "1").received(asked("v1", "1", names=frozenset({"a"})))
    assert not taken.wants("v1")
    more, _ = taken.received(asked("v1", "1", names=frozenset({"a", "b"})))
    assert more.wants("v1")
    assert not more.sent("v1", "2").received(asked("v1", "2", names=frozenset({"a", "b"})))[0].wants("v1")


def resources(**versions: str) -> Resources:
    return {
        resource_type: TypedResources(versions.get(resource_type.name.lower(), "v1"), ())
        for resource_type in ResourceType
    }


def request(
    resource_type: ResourceType, version: str = "", nonce: str = "", error: str = ""
) -> discovery_pb2.DiscoveryRequest:
    message = discovery_pb2.DiscoveryRequest(type_url=resource_type.value, version_info=version, response_nonce=nonce)
    if error:
        message.error_detail.message = error
    return message


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def stream(registry: CollectorRegistry) -> EnvoyStream:
    return EnvoyStream(DiscoveryMetrics(registry))


def test_types_are_sent_in_order_and_only_when_they_changed(stream: EnvoyStream) -> None:
    for resource_type in reversed(ResourceType):
        stream.received(request(resource_type))
    first = list(stream.due(resources()))
    assert [message.type_url for message in first] == [resource_type.value for resource_type in ResourceType]
    assert len({message.nonce for message in first}) == 3
    assert list(stream.due(resources(routes="v2"))) == []
    for message in first:
        stream.received(request(ResourceType(message.type_url), "v1", message.nonce))
    (changed,) = stream.due(resources(routes="v2"))
    assert (changed.type_url, changed.version_info) == (ResourceType.ROUTES.value, "v2")


def test_a_refusal_is_an_error_in_the_log_and_counted(
    stream: EnvoyStream, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    stream.received(request(ResourceType.ROUTES))
    (message,) = stream.due(resources())
    with caplog.at_level(logging.ERROR):
        stream.received(request(ResourceType.ROUTES, "", message.nonce, error="unknown field"))
    (record,) = caplog.records
    assert vars(record)["detail"] == "unknown field"
    assert registry.get_sample_value("maas_gateway_xds_refused_total", {"type": "routes"}) == 1
    assert list(stream.due(resources())) == []
    assert len(list(stream.due(resources(routes="v2")))) == 1


def test_a_type_that_is_not_served_is_left_unanswered(stream: EnvoyStream) -> None:
    stream.received(discovery_pb2.DiscoveryRequest(type_url="type.googleapis.com/envoy.Unknown"))
    assert list(stream.due(resources())) == []


def test_a_snapshot_replaces_and_a_change_adds_and_removes() -> None:
    known = KnownDeployments().after(snapshot=True, present=["a", "b"], deleted=[], resume_token="1")
    assert known == KnownDeployments(frozenset({"a", "b"}), "1")
    known = known.after(snapshot=False, present=["c"], deleted=["a", "never"], resume_token="2")
    assert known == KnownDeployments(frozenset({"b", "c"}), "2")
    assert known.after(snapshot=True, present=["d"], deleted=[], resume_token="3").ids == {"d"}


def test_deployments_survive_in_their_file(tmp_path: Path) -> None:
    known = KnownDeployments(frozenset({"a", "b"}), "token")
    file = DeploymentsFile(tmp_path / "deployments.json")
    assert file.load() == KnownDeployments()
    file.save(known)
    assert file.load() == known
    assert [path.name for path in tmp_path.iterdir()] == ["deployments.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', json.dumps({"format": 1, "deployments": 3})])
def test_a_damaged_file_is_a_start_from_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "deployments.json"
    path.write_text(text)
    assert DeploymentsFile(path).load() == KnownDeployments()
    assert len(caplog.records) == 1


def test_a_file_that_cannot_be_written_is_an_error_in_the_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DeploymentsFile(tmp_path / "missing" / "deployments.json").save(KnownDeployments(frozenset({"a"})))
    assert [record.levelname for record in caplog.records] == ["ERROR"]

"""Parts of the protocol by themselves: options, classes, bodies, statistics, descriptions, questions to the manager."""

import asyncio
import math
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric

from maas.names import DeploymentName
from maas.oip.v2.grpc_service_pb2 import ModelInferRequest
from maas_inference.datatypes import pack, split_elements, unpack
from maas_inference.description import model_config, model_metadata, repository_index
from maas_inference.front.bodies import Bodies
from maas_inference.front.failures import (
    BodiesTooLarge,
    DeadlineExpired,
    MessageTooLarge,
    ParameterInvalid,
    TimeoutHeaderInvalid,
)
from maas_inference.front.grpc_infer import InputReader
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.options import NO_OPTIONS, grpc_parameters, read_options
from maas_inference.front.question import Answer, CallerGone
from maas_inference.front.rest_infer import packed_body, parse_timeout
from maas_inference.front.wanted import Wanted, check_wanted, classified
from maas_inference.inquiry import Inquiry, ManagerAway, answering, asker
from maas_inference.manager.front_metrics import front_families
from maas_inference.repository import DeploymentNotServed, Repository, VersionNotServed
from maas_inference.statistics import statistics_of
from maas_inference.table import ModelTable, ServedDeployment, ServedVersion, Tensor
from maas_inference.wire import TensorHeader

SERVED = ServedVersion(
    "1",
    "m",
    1,
    "ready",
    engine="onnxruntime",
    precision="fp32",
    inputs=(Tensor("a", "INT64", (-1, 2)), Tensor("b", "FP32", (-1,))),
    outputs=(Tensor("scores", "FP32", (-1, 3)), Tensor("names", "BYTES", (-1,))),
    labels=("low", "middle", "high"),
    text_input="text",
)
TABLE = ModelTable(
    7,
    "0.1",
    (
        ServedDeployment("one", (SERVED, ServedVersion("2", "m", 0, "failed", message="no file"))),
        ServedDeployment("two", (ServedVersion("1", "m", 1, "loading"),)),
    ),
)


# Datatypes


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 3.140625, 2.0**100, math.inf])
def test_a_bf16_comes_back(value: float) -> None:
    assert unpack("BF16", pack("BF16", [value])) == [value]


def test_a_bf16_is_the_nearest_and_the_even_one_of_two() -> None:
    one, step = 0x3F80, 2.0**-7
    for value, expected in ((1 + step / 2, one), (1 + 1.5 * step, one + 2), (1 + 0.51 * step, one + 1)):
        assert pack("BF16", [value]) == struct.pack("<H", expected)


def test_a_number_that_would_become_infinite_is_refused_and_infinity_is_not() -> None:
    for datatype in ("FP16", "FP32", "BF16"):
        with pytest.raises(ValueError, match="is no"):
            pack(datatype, [1e39])
    assert unpack("FP32", pack("FP32", [math.inf, -math.inf])) == [math.inf, -math.inf]


def test_elements_are_not_counted_beyond_what_is_wanted() -> None:
    with pytest.raises(ValueError, match="more than 2"):
        split_elements(b"\0" * 4 * 1000, at_most=2)


# Options


def test_options_are_the_same_over_grpc_and_rest() -> None:
    request = ModelInferRequest()
    request.parameters["priority"].uint64_param = 2
    request.parameters["timeout"].int64_param = 1500
    request.parameters["other"].string_param = "x"
    for parameters in (grpc_parameters(request.parameters), {"priority": 2, "timeout": 1500, "other": None}):
        options = read_options(parameters)
        assert (options.priority, options.timeout_seconds) == (2, 0.0015)
        assert options.deadline(arrived=10.0, deadline=11.0) == pytest.approx(10.0015)
    assert read_options({"timeout": 0, "priority": 0}) == NO_OPTIONS
    assert NO_OPTIONS.deadline(10.0, 11.0) == 11.0
    assert read_options({"timeout": 10**9}).deadline(10.0, 11.0) == 11.0


@given(st.sampled_from(["priority", "timeout"]), st.one_of(st.text(), st.floats(), st.booleans(), st.none()))
def test_an_option_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(ParameterInvalid):
        read_options({name: value})


@given(st.binary(max_size=20))
def test_a_timeout_header_is_milliseconds_or_refused(value: bytes) -> None:
    try:
        assert 0 <= parse_timeout(value) <= 3600
    except TimeoutHeaderInvalid:
        assert not (value.isdigit() and len(value) <= 12)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (b"", b""),
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"br, deflate;q=0.5, GZIP;q=0.1", b"gzip"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip; q=0.000", b""),
        (b"*", b""),
    ],
)
def test_an_answer_is_compressed_as_the_caller_takes_it(accepted: bytes, encoding: bytes) -> None:
    assert packed_body(b"a" * 5000, accepted)[1] == encoding
    assert packed_body(b"a" * 500, accepted) == (b"a" * 500, b"")


# Outputs


def test_classes_are_the_largest_elements_of_each_row() -> None:
    wanted = check_wanted(SERVED, [("names", {}), ("scores", {"classification": 2})])
    assert wanted == Wanted((1, 0), (0, 2))
    tensors = (TensorHeader("scores", "FP32", (2, 3), 24), TensorHeader("names", "BYTES", (2,), 10))
    answer = Answer(tensors, ((2, 3), (2,)), [struct.pack("<6f", 0.1, 0.7, 0.2, 3, 2, 1), b"\1\0\0\0a" * 2])
    named = classified(SERVED, wanted, answer)
    assert split_elements(named.raws[0]) == [
        b"0.700000:1:middle", b"0.200000:2:high", b"3.000000:0:low", b"2.000000:1:middle"
    ]  # fmt: skip
    assert (named.tensors[0].datatype, named.shapes[0]) == ("BYTES", (2, 2))
    assert (named.tensors[1], named.raws[1]) == (answer.tensors[1], answer.raws[1])


def test_more_classes_than_there_are_is_all() -> None:
    answer = Answer((TensorHeader("scores", "FP32", (1, 3), 12),), ((1, 3),), [struct.pack("<3f", 1, 2, 3)])
    assert classified(SERVED, Wanted((0,), (2**40,)), answer).shapes == ((1, 3),)


# Inputs


def two_inputs(rows: int, *, turned: bool = False) -> ModelInferRequest:
    request = ModelInferRequest()
    tensors = [("a", "INT64", [rows, 2], b"a" * 16 * rows), ("b", "FP32", [rows], b"b" * 4 * rows)]
    for name, datatype, shape, raw in reversed(tensors) if turned else tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def test_shapes_that_were_seen_are_read_as_the_first_time() -> None:
    reader = InputReader()
    for turned in (False, True):
        for rows in (1, 3):
            first, again = (reader.read(SERVED, two_inputs(rows, turned=turned)) for _ in range(2))
            assert first == again
            assert first.parts == [b"a" * 16 * rows, b"b" * 4 * rows]
            assert first.rows == rows


def test_a_shape_that_was_seen_is_looked_at_again_for_another_version() -> None:
    reader = InputReader()
    reader.read(SERVED, two_inputs(1))
    other = ServedVersion("2", "m", 1, "ready", inputs=(Tensor("a", "INT64", (-1, 2)),), outputs=SERVED.outputs)
    with pytest.raises(Exception, match="no input 'b'"):
        reader.read(other, two_inputs(1))


# Bodies


def receiving(*messages: dict[str, Any] | None) -> Any:
    """ASGI's receive, with these messages; None waits for ever."""
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        message = next(left)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    return receive


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def test_a_body_is_whole_however_it_is_cut() -> None:
    bodies = Bodies()
    assert await bodies.read(receiving(piece(b"ab", more=False)), soon()) == b"ab"
    pieces = [piece(b"a", more=True), piece(b"", more=True), piece(b"b", more=False)]
    assert await bodies.read(receiving(*pieces), soon()) == b"ab"


async def test_bodies_are_bounded_one_by_one_and_together() -> None:
    bodies = Bodies(limit=100)
    megabytes = [piece(bytes(40 << 20), more=True)] * 2
    with pytest.raises(BodiesTooLarge):
        await bodies.read(receiving(*megabytes), soon())
    with pytest.raises(MessageTooLarge):
        await Bodies().read(receiving(*megabytes), soon())
    bodies.hold(90)
    with pytest.raises(BodiesTooLarge):
        await bodies.read(receiving(piece(bytes(20), more=True)), soon())
    bodies.let_go(90)
    assert await bodies.read(receiving(piece(bytes(20), more=True), piece(b"", more=False)), soon()) == bytes(20)
    bodies.hold(100)  # nothing is left of any of them


async def test_a_body_that_does_not_come_has_an_end() -> None:
    bodies = Bodies(limit=10)
    with pytest.raises(DeadlineExpired):
        await bodies.read(receiving(piece(b"a", more=True), None), soon(0.01))
    for pieces in ([], [piece(b"a", more=True)]):
        with pytest.raises(CallerGone):
            await bodies.read(receiving(*pieces, {"type": "http.disconnect"}), soon())
    bodies.hold(10)


# What a server says of itself


def test_metadata_and_configuration_name_every_tensor() -> None:
    metadata = model_metadata("one", ["1", "2"], SERVED)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["a", "b", "text"]
    assert (metadata["platform"], metadata["versions"]) == ("onnxruntime_fp32", ["1", "2"])
    config = model_config("one", SERVED)
    assert config["output"][1] == {"name": "names", "data_type": "TYPE_STRING", "dims": []}
    assert config["max_batch_size"] == SERVED.max_batch_rows
    alone = ServedVersion("1", "m", 1, "ready", inputs=(Tensor("a", "FP32", (4, 2)),))
    assert model_config("one", alone)["max_batch_size"] == 0
    assert model_config("one", alone)["input"][0]["dims"] == [4, 2]


def test_the_index_says_why_a_version_is_not_ready() -> None:
    index = [tuple(version.values()) for version in repository_index(TABLE.deployments, ready_only=False)]
    assert index == [
        ("one", "1", "READY", ""), ("one", "2", "UNAVAILABLE", "no file"), ("two", "1", "LOADING", "loading")
    ]  # fmt: skip
    assert len(repository_index(TABLE.deployments, ready_only=True)) == 1


def measured() -> Iterable[Metric]:
    metrics = FrontMetrics()
    version = metrics.of_version("one", "1")
    version.statuses["OK"] += 5
    version.statuses["UNAVAILABLE"] += 2
    version.statuses["DEADLINE_EXCEEDED"] += 1
    version.batch_rows.observe(8)
    version.batch_rows.observe(4)
    for _ in range(5):
        version.total.observe(0.002)
        version.queue.observe(0.001)
    version.compute.observe(0.25)
    metrics.of_version("gone", "1").statuses["OK"] += 1
    return front_families({"0": metrics.counts()})


def test_statistics_are_sums_in_nanoseconds() -> None:
    counted, nothing = statistics_of(measured(), [("one", "1"), ("two", "1")])
    assert (counted["inference_count"], counted["execution_count"]) == (12, 2)
    assert counted["inference_stats"] == {
        "success": {"count": 5, "ns": 10_000_000},
        "fail": {"count": 3, "ns": 0},
        "queue": {"count": 5, "ns": 5_000_000},
        "compute_infer": {"count": 1, "ns": 250_000_000},
    }
    assert nothing["name"] == "two"
    assert nothing["inference_stats"]["success"] == {"count": 0, "ns": 0}


class Loads:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def load(self, name: DeploymentName) -> None:
        self.calls.append(("load", str(name)))

    async def unload(self, name: DeploymentName) -> None:
        self.calls.append(("unload", str(name)))


def test_a_repository_finds_versions_or_says_what_there_is() -> None:
    repository = Repository(lambda: TABLE, measured, Loads())
    assert repository.version("one", "").version == "1"
    assert repository.version("one", "2").state == "failed"
    assert [found["version"] for found in repository.statistics("one", "")] == ["1", "2"]
    with pytest.raises(DeploymentNotServed, match="one, two"):
        repository.deployment("three")
    with pytest.raises(VersionNotServed):
        repository.statistics("one", "3")


async def test_a_front_asks_its_manager() -> None:
    loads = Loads()
    repository = Repository(lambda: TABLE, measured, loads)
    with TemporaryDirectory(prefix="maas-") as folder:
        path = Path(folder) / "manager.sock"
        ask = asker(str(path))
        with pytest.raises(ManagerAway):
            await ask(Inquiry("statistics"))
        async with answering(path, repository):
            outcomes: Sequence[Any] = [
                await ask(Inquiry("statistics", "one", "1")),
                await ask(Inquiry("load", "one")),
                await ask(Inquiry("unload", "two")),
                await ask(Inquiry("load", "three")),
            ]
        with pytest.raises(ManagerAway):
            await ask(Inquiry("statistics"))
    assert [outcome.status for outcome in outcomes] == [200, 200, 200, 404]
    assert outcomes[0].content["model_stats"][0]["inference_count"] == 12
    assert outcomes[3].content["reason"] == "DEPLOYMENT_NOT_SERVED"
    assert loads.calls == [("load", "deployments/one"), ("unload", "deployments/two")]

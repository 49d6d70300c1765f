"""The Open Inference Protocol and /predict through the gateway, asked by tritonclient and plain HTTP."""

import http.client
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from cluster_under_test import Cluster, until
from maas.client import Client
from maas_engine.engine import open_engine
from maas_engine.predictor import Predictor
from maas_package.package import Package

TEXTS = ["a good film", "the plot is boring and bad", "great", "nothing of this is in the vocabulary", "good " * 300]


def post(cluster: Cluster, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://{cluster.endpoint}{path}", data=body, headers={"Content-Type": "application/json"} | (headers or {})
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def direct(package: Package) -> Predictor:
    return Predictor(package, open_engine(package, package.manifest.servables[0], threads=1))


def test_tritonclient_over_grpc_reads_metadata_and_gets_the_answers_of_a_direct_call(
    cluster: Cluster, reviews: str, packages: list[Package]
) -> None:
    tokens = np.array([[3, 4, 5, 0], [6, 7, 0, 0]], dtype=np.int64)
    client = tritonclient.grpc.InferenceServerClient(cluster.endpoint)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(reviews)
        metadata = client.get_model_metadata(reviews)
        assert metadata.name == reviews
        assert {tensor.name: tensor.datatype for tensor in metadata.inputs}["tokens"] == "INT64"
        tensor = tritonclient.grpc.InferInput("tokens", list(tokens.shape), "INT64")
        tensor.set_data_from_numpy(tokens)
        result = client.infer(reviews, [tensor], request_id="7")
        assert result.get_response().id == "7"
        expected = direct(packages[0]).predict({"tokens": tokens})
        np.testing.assert_allclose(result.as_numpy("logits"), expected.outputs["logits"], atol=1e-5)
        text = tritonclient.grpc.InferInput("text", [len(TEXTS)], "BYTES")
        text.set_data_from_numpy(np.array([word.encode() for word in TEXTS], dtype=np.object_))
        by_text = client.infer(reviews, [text]).as_numpy("logits")
        expected = direct(packages[0]).predict({"text": np.array(TEXTS, dtype=np.object_)})
        np.testing.assert_allclose(by_text, expected.outputs["logits"], atol=1e-5)
    finally:
        client.close()


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_over_http_reads_metadata_and_gets_the_answers_of_a_direct_call(
    cluster: Cluster, reviews: str, packages: list[Package], binary: bool
) -> None:
    tokens = np.array([[3, 4, 5, 0], [6, 7, 0, 0]], dtype=np.int64)
    client = tritonclient.http.InferenceServerClient(cluster.endpoint)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(reviews)
        assert client.get_model_metadata(reviews)["name"] == reviews
        tensor = tritonclient.http.InferInput("tokens", list(tokens.shape), "INT64")
        tensor.set_data_from_numpy(tokens, binary_data=binary)
        wanted = [tritonclient.http.InferRequestedOutput("logits", binary_data=binary)]
        answer = client.infer(reviews, [tensor], outputs=wanted).as_numpy("logits")
        expected = direct(packages[0]).predict({"tokens": tokens})
        np.testing.assert_allclose(answer, expected.outputs["logits"], atol=1e-5)
    finally:
        client.close()


def test_predict_keeps_the_contract_of_the_readme(cluster: Cluster, reviews: str) -> None:
    status, answer = post(cluster, "/predict", b'{"text": "This is a sample text."}')
    assert status == 200
    assert answer["predicted"] in (0, 1)
    assert (answer["model"], answer["version"]) == (reviews, "1")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", b'{"text": ""}', 400),
        ("/predict", b"{not json", 400),
        ("/predict", b'{"text": "\xff\xfe"}', 400),
        ("/predict", b"{}", 400),
        ("/predict", b'{"text": 7}', 400),
        ("/predict/unknown", b'{"text": "a"}', 404),
        ("/v2/models/unknown/infer", b'{"inputs": []}', 404),
        ("/v2/models/reviews/versions/99/infer", b'{"inputs": []}', 404),
        ("/v2/models/reviews/infer", b'{"inputs": []}', 400),
        (
            "/v2/models/reviews/infer",
            b'{"inputs": [{"name": "tokens", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]}',
            400,
        ),
        (
            "/v2/models/reviews/infer",
            b'{"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [1]}]}',
            400,
        ),
        ("/v1/models/Not-An-Id", None, 400),
        ("/v1/models/nobody", None, 404),
        ("/nowhere", None, 404),
    ],
)
def test_bad_requests_get_their_status_a_reason_and_a_sentence(
    cluster: Cluster, reviews: str, path: str, body: bytes | None, status: int
) -> None:
    if body is None:
        connection = http.client.HTTPConnection(cluster.endpoint, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        got, answer = response.status, json.loads(response.read())
        connection.close()
    else:
        got, answer = post(cluster, path, body)
    assert got == status, answer
    assert answer["reason"]
    assert len(answer["error"]) > 10, answer
    assert post(cluster, "/predict", b'{"text": "a good film"}')[0] == 200


def test_a_megabyte_of_text_is_answered_or_refused_and_harms_nobody(cluster: Cluster, reviews: str) -> None:
    body = json.dumps({"text": "good " * 210_000}).encode()
    assert len(body) > 1_000_000
    status, answer = post(cluster, "/predict", body)
    assert status in (200, 400, 413), answer
    assert post(cluster, "/predict", b'{"text": "a good film"}')[0] == 200


def test_a_new_version_takes_over_without_a_lost_request(cluster: Cluster, reviews: str) -> None:
    with Client(cluster.endpoint) as client:
        cluster.maas("deploy", "reviews", "reviews@2", "--no-wait")
        seen = set()

        def moved() -> bool:
            seen.add(client.predict(reviews, "a good film").version)
            return "2" in seen

        until(moved, 20, "version 2 answers")
        cluster.maas("deploy", "reviews", "reviews@1")
        assert client.predict(reviews, "a good film").version == "1"


def test_weights_split_the_requests(cluster: Cluster, reviews: str) -> None:
    cluster.maas("deploy", "split", "reviews@1=3", "reviews@2=1")
    try:
        with Client(cluster.endpoint) as client:
            versions = [client.predict("split", "a good film").version for _ in range(40)]
        assert (versions.count("1"), versions.count("2")) == (30, 10)
        status, answer = post(cluster, "/predict", b'{"text": "a"}')
        assert status == 400
        assert "split" in answer["error"]
        assert post(cluster, "/predict", b'{"text": "a"}', {"maas-model": "split"})[0] == 200
        assert post(cluster, "/predict/split", b'{"text": "a"}')[0] == 200
    finally:
        cluster.maas("undeploy", "split")
    until(lambda: post(cluster, "/predict/split", b'{"text": "a"}')[0] == 404, 5, "the deployment is gone")


def test_promtool_accepts_the_metrics_of_the_whole_cluster(cluster: Cluster, reviews: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is Debian's package prometheus")
    with urllib.request.urlopen(f"http://{cluster.endpoint}/metrics", timeout=10) as response:
        text = response.read().decode()
    result = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
    for process in ("registry", "rollout", "training", "compression", "inference", "envoy"):
        assert f'process="{process}"' in text
    assert "maas_inference_" in text


def test_a_damaged_artifact_is_refused_and_the_old_version_goes_on_answering(
    cluster: Cluster, reviews: str, packages: list[Package]
) -> None:
    version = cluster.json("models", "push", "damaged", str(packages[0].folder))
    blob = next(file["blob"] for file in version["files"] if file["path"].endswith("model.onnx"))
    sha256 = blob.removeprefix("blobs/")
    # The same bytes belong to reviews@1, which is loaded already and cached by the manager.
    path = next((cluster.home / "registry").rglob(sha256))
    original = path.read_bytes()
    path.write_bytes(original[:-4] + b"xxxx")
    try:
        pulled = cluster.maas("models", "pull", "damaged@1", str(cluster.home / "pulled"), check=False)
        assert pulled.returncode == 1
        assert "damaged" in pulled.stderr
        assert not (Path(cluster.home) / "pulled" / "servables/onnxruntime/model.onnx").exists()
        deployed = cluster.maas("deploy", "damaged", "damaged@1", check=False)
        assert deployed.returncode == 1
        assert post(cluster, "/predict/reviews", b'{"text": "a good film"}')[0] == 200
    finally:
        path.write_bytes(original)
        cluster.maas("undeploy", "damaged", check=False)

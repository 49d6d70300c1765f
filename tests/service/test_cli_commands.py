"""The `maas` command against a cluster of plain behaviour: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_cluster import PlainCluster, serving
from typer.testing import CliRunner, Result

from maas.cli.app import app

Maas = Callable[..., Result]


@pytest.fixture
def cluster() -> PlainCluster:
    return PlainCluster()


@pytest.fixture
def endpoint(cluster: PlainCluster) -> Iterator[str]:
    with serving(cluster) as endpoint:
        yield endpoint


@pytest.fixture
def maas(endpoint: str, tmp_path: Path) -> Maas:
    """Run a command; unless told otherwise it has to succeed."""

    def run(*arguments: str, status: int = 0, stdin: str | None = None) -> Result:
        environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(tmp_path / "home")}
        result = CliRunner().invoke(app, list(arguments), env=environment, input=stdin)
        assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
        return result

    return run


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def reviews(maas: Maas, package: Path) -> str:
    """A model with two versions, the first of which answers as `live`."""
    for _ in range(2):
        maas("models", "push", "reviews", str(package))
    maas("deploy", "live", "reviews@1")
    return "reviews"


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    return json.loads(result.stdout)


JSON_COMMANDS = [
    ("status",),
    ("models", "ls"),
    ("models", "show", "reviews"),
    ("models", "show", "reviews@1"),
    ("models", "alias", "reviews@1", "best"),
    ("data", "ls"),
    ("train", "--dataset", "reviews", "--model", "reviews"),
    ("train", "--dataset", "reviews", "--model", "reviews", "--no-wait"),
    ("compress", "reviews", "--method", "int8"),
    ("advise", "reviews"),
    ("techniques",),
    ("techniques", "int8"),
    ("jobs", "ls"),
    ("deploy", "live", "reviews@2"),
    ("deploy", "live", "reviews@2", "--no-wait"),
    ("deployments", "ls"),
    ("deployments", "show", "live"),
    ("deployments", "events", "live"),
    ("predict", "live", "--text", "good"),
    ("undeploy", "live"),
]


@pytest.mark.parametrize("command", JSON_COMMANDS, ids=" ".join)
def test_json_is_one_document_and_nothing_else(maas: Maas, reviews: str, command: tuple[str, ...]) -> None:
    assert document(maas(*command, "--json")) is not None


@pytest.mark.parametrize("command", JSON_COMMANDS, ids=" ".join)
def test_people_get_text_without_noise(maas: Maas, reviews: str, command: tuple[str, ...]) -> None:
    result = maas(*command)
    assert result.stdout or result.stderr
    assert "\x1b[" not in result.stdout + result.stderr, "colours and bars are for terminals"


def test_a_model_is_shown_with_its_versions_and_aliases(maas: Maas, reviews: str) -> None:
    maas("models", "alias", "reviews@1", "best")
    shown = document(maas("models", "show", "reviews", "--json"))
    assert [version["name"] for version in shown["versions"]] == [
        "models/reviews/versions/2",
        "models/reviews/versions/1",
    ]
    assert [(alias["name"], alias["version"]) for alias in shown["aliases"]] == [
        ("models/reviews/aliases/best", "models/reviews/versions/1")
    ]
    assert shown["version_count"] == 2, "numbers are numbers"
    assert "reviews@1  best" in maas("models", "show", "reviews").stdout
    maas("models", "alias", "reviews", "best", "--delete")
    assert not document(maas("models", "show", "reviews", "--json"))["aliases"]


def test_a_package_is_pulled_into_a_new_folder(maas: Maas, reviews: str, tmp_path: Path) -> None:
    maas("models", "pull", "reviews", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "manifest.json").read_text() == "{}"
    assert "not empty" in maas("models", "pull", "reviews", str(tmp_path / "copy"), status=1).stderr


def test_a_folder_of_splits_is_a_dataset(maas: Maas, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    made = document(maas("data", "push", "mine", str(tmp_path), "--json"))
    assert {split["split_id"]: split["row_count"] for split in made["splits"]} == {"train": 2, "test": 2}
    files = {split: f"{split}={tmp_path / split}.parquet" for split in ("train", "test")}
    assert "mine@1" in maas("data", "push", "mine", *files.values()).stderr, "the same again is the same version"
    maas("data", "push", "mine", files["train"])
    assert document(maas("data", "ls", "--json"))[0]["latest_version"] == "datasets/mine/versions/2"
    assert "there is no file what" in maas("data", "push", "mine", "what", status=1).stderr


def test_training_shows_what_was_made(maas: Maas, cluster: PlainCluster) -> None:
    result = maas("train", "--dataset", "reviews", "--model", "reviews", "--epochs", "3", "--learning-rate", "0.01")
    assert "reviews@1" in result.stderr
    assert "0.750" in result.stderr
    asked = cluster.training["trainingJobs/t1"]
    assert (asked.hyperparameters.epochs, asked.hyperparameters.learning_rate) == (3, 0.01)
    assert not asked.hyperparameters.HasField("dropout"), "what nobody asked for is the server's to choose"


def test_a_job_that_fails_fails_the_command(maas: Maas, cluster: PlainCluster) -> None:
    cluster.failing_job = True
    result = maas("train", "--dataset", "reviews", "--model", "reviews", "--json", status=1)
    assert "the data is empty" in result.stderr
    assert document(result)["status"]["error"]["code"] == "INVALID_ARGUMENT"


def test_methods_are_a_recipe_in_their_order(maas: Maas, reviews: str, cluster: PlainCluster) -> None:
    methods = ("-m", "clip", "-m", "fixed_point(fractional_bits=6)", "-m", "int8")
    result = maas("compress", "reviews@1", *methods)
    job = cluster.compression["compressionJobs/c1"]
    assert [step.WhichOneof("technique") for step in job.recipe.techniques] == ["clip", "fixed_point", "int8"]
    assert job.recipe.techniques[1].fixed_point.fractional_bits == 6
    assert job.source_version == "models/reviews/versions/1"
    assert "4.0 times smaller" in result.stdout
    assert "fractional_bits" in maas("compress", "reviews", "-m", "fixed_point(bits=6)", status=1).stderr
    maas("compress", "reviews", status=2)


def test_a_recipe_is_read_from_a_file_with_limits_beside_it(
    maas: Maas, reviews: str, cluster: PlainCluster, tmp_path: Path
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("- vocabulary\n- int8: {mode: static}\n")
    maas("compress", "reviews@1", "--recipe", str(file), "--max-size", "6MB", "--max-p50", "2ms", "--allow-no-gain")
    job = cluster.compression["compressionJobs/c1"]
    assert [step.WhichOneof("technique") for step in job.recipe.techniques] == ["vocabulary", "int8"]
    assert (job.limits.max_size_bytes, job.limits.max_p50.ToMilliseconds(), job.allow_no_gain) == (6_000_000, 2, True)
    file.write_text("- vocabulary\n- int9\n")
    assert "step 2 (line 2)" in maas("compress", "reviews@1", "--recipe", str(file), status=1).stderr
    assert "cannot be read" in maas("compress", "reviews@1", "--recipe", str(tmp_path / "none"), status=1).stderr
    assert "write 6MB" in maas("compress", "reviews@1", "-m", "int8", "--max-size", "0", status=1).stderr
    assert "no recipe" in maas("compress", "reviews@1", "--like", "reviews@1", status=1).stderr


@pytest.mark.parametrize(
    "options", [("-m", "int8", "--auto"), ("-m", "int8", "--trials", "3"), ("-m", "int8", "--bits", "4")], ids=" ".join
)
def test_options_of_two_kinds_of_work_are_wrong_usage(maas: Maas, reviews: str, options: tuple[str, ...]) -> None:
    maas("compress", "reviews", *options, status=2)


def test_jobs_are_watched_and_cancelled_by_id(maas: Maas, cluster: PlainCluster) -> None:
    maas("train", "--dataset", "d", "--model", "m", "--no-wait")
    assert document(maas("jobs", "cancel", "t1", "--json"))["status"]["state"] == "JOB_STATE_CANCELLING"
    assert document(maas("jobs", "watch", "t1", "--json"))["result_version"] == "models/m/versions/1"
    assert "trainingJobs/t1" in maas("jobs", "ls").stdout


def test_targets_have_weights_and_the_record_says_who_and_why(maas: Maas, reviews: str, cluster: PlainCluster) -> None:
    maas("models", "alias", "reviews@2", "new")
    maas("deploy", "live", "reviews@1=90", "reviews@new=10", "--reason", "try it")
    targets = document(maas("deployments", "show", "live", "--json"))["targets"]
    assert [(target["version"][-1], target["weight"]) for target in targets] == [("1", 90), ("2", 10)]
    assert "reviews@1 90%, reviews@2 10%" in maas("deployments", "ls").stdout
    event = document(maas("deployments", "events", "live", "--json"))[0]
    assert (event["action"], event["reason"]) == ("updated", "try it")
    assert "@" in event["actor"]


def test_texts_come_from_options_lines_and_json(maas: Maas, reviews: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("so good\n\nso bad\n")
    texts = tmp_path / "texts.json"
    texts.write_text('["good", "größe"]')
    asked = document(maas("predict", "live", "-t", "good one", "--file", str(lines), "--json"))
    assert [(one["text"], one["label"]) for one in asked] == [
        ("good one", "positive"),
        ("so good", "positive"),
        ("so bad", "negative"),
    ]
    assert [one["predicted"] for one in document(maas("predict", "live", "-f", str(texts), "--json"))] == [1, 0]
    body = maas("predict", "live", "-f", "-", "--json", stdin='{"text": "good"}')
    assert [one["predicted"] for one in document(body)] == [1]
    piped = maas("predict", "live", "--file", "-", stdin="good\n" * 150)
    assert piped.stdout.count("positive") == 150


def test_tensors_come_from_json(maas: Maas, reviews: str) -> None:
    asked = maas("predict", "live", "--file", "-", stdin='{"tokens": [[1, 2], [3, 4]]}')
    assert document(asked) == {"tokens": [[1, 2], [3, 4]]}


@pytest.mark.parametrize("content", ['{"a"', "[1, 2]", "[[]]"])
def test_input_that_is_nearly_json_is_refused(maas: Maas, reviews: str, content: str) -> None:
    assert "maas: " in maas("predict", "live", "--file", "-", stdin=content, status=1).stderr


def test_nothing_to_ask_is_a_sentence(maas: Maas, reviews: str, tmp_path: Path) -> None:
    assert "--text or --file" in maas("predict", "live", status=1).stderr
    assert "cannot be read" in maas("predict", "live", "--file", str(tmp_path / "none"), status=1).stderr


def test_an_error_is_one_sentence_and_more_on_demand(maas: Maas) -> None:
    assert maas("models", "show", "nothing", status=1).stderr == "maas: there is no models/nothing\n"
    told = maas("models", "show", "nothing", "--verbose", status=1).stderr
    assert "PLAIN_MISSING" in told
    assert "request-1" in told


def test_nobody_at_the_endpoint_is_status_69(maas: Maas) -> None:
    told = maas("models", "ls", "--endpoint", "127.0.0.1:1", status=69).stderr
    assert "no cluster answers at 127.0.0.1:1" in told
    assert "maas up" in told


def test_deploy_takes_serving_settings_as_people_write_them(maas: Maas, reviews: str) -> None:
    given = (
        "--max-batch-rows 64 --max-queue-delay 5ms --max-queue-rows 2000 --cache 64MB --on-demand "
        "--engine openvino:bf16 --worker-memory 2GB --compute-timeout 10s"
    )
    maas("deploy", "live", "reviews@1", *given.split())
    assert document(maas("deployments", "show", "live", "--json"))["serving"] == {
        "max_batch_rows": 64,
        "max_queue_delay": "0.005s",
        "max_queue_rows": 2000,
        "cache_bytes": 64_000_000,
        "load_policy": "LOAD_POLICY_ON_DEMAND",
        "engine": "openvino:bf16",
        "worker_memory_bytes": 2_000_000_000,
        "compute_timeout": "10s",
    }
    shown = maas("deployments", "show", "live").stdout
    for part in ("on demand", "5 ms", "64.0 MB", "openvino:bf16", "2.0 GB", "10 s"):
        assert part in shown
    for wrong in (("--cache", "64"), ("--max-queue-delay", "5 hours"), ("--worker-memory", "-2GB")):
        assert "is not a" in maas("deploy", "live", "reviews@1", *wrong, status=1).stderr


def test_status_shows_health_deployments_and_loaded_versions(maas: Maas, reviews: str) -> None:
    shown = document(maas("status", "--json"))
    assert {process["name"]: process["healthy"] for process in shown["processes"]} == {
        "registry": True,
        "training": False,  # nothing serves it in this cluster
        "compression": False,
        "rollout": True,
        "inference": False,
    }
    assert shown["loaded_versions"][0]["memory_bytes"] == 60_000_000
    text = maas("status").stdout
    assert "reviews@1" in text
    assert "60.0 MB" in text


def test_ctrl_c_on_a_watch_leaves_the_job_and_says_how_to_go_on(endpoint: str, cluster: PlainCluster) -> None:
    cluster.unavailable["WatchTrainingJob"] = 10**9  # nothing comes, for as long as the watch is tried again
    # A shell starts what it puts into the background with SIGINT ignored, and children inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "maas.cli", "train", "--dataset", "d", "--model", "m"],
        env=os.environ | {"MAAS_ENDPOINT": endpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, inherited)
    try:
        end = time.monotonic() + 20
        while "WatchTrainingJob" not in cluster.called:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "trainingJobs/t1 goes on" in told
    assert "maas jobs watch trainingJobs/t1" in told
    assert "Traceback" not in told

"""The command starts fast because it imports what it needs when it needs it; and it says what a machine lacks."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from typer.testing import CliRunner

from maas.cli.app import app
from maas.cli.doctor import examine
from maas.cli.output import bytes_text, duration_text, plain, short_version, state_text
from maas.errors import InvalidInputError
from maas.jobs.v1 import job_state_pb2
from maas.names import AliasName, ModelName, VersionName
from maas.references import TargetReference, parse_reference
from maas.registry.v1 import model_pb2
from maas.training.v1 import training_job_pb2

HEAVY = {"grpc", "google.protobuf", "numpy", "pyarrow", "torch", "onnxruntime", "asyncio", "cryptography"}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("models", "sign", "--help"), ("--version",)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys; from maas.cli import main\n"
        f"sys.argv = ['maas', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print('modules', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stderr.rpartition("modules ")[2].split())
    assert modules.isdisjoint(HEAVY)
    assert "maas" in done.stdout


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("reviews", ModelName("reviews")),
        ("reviews@2", VersionName("reviews", 2)),
        ("reviews@best-one", AliasName("reviews", "best-one")),
        ("models/reviews", ModelName("reviews")),
        ("models/reviews/versions/2", VersionName("reviews", 2)),
        ("models/reviews/aliases/2", AliasName("reviews", "2")),
    ],
)
def test_versions_are_named_as_people_name_them(text: str, name: object) -> None:
    assert parse_reference(text) == name


def test_a_target_has_a_weight_of_one_unless_it_says_another() -> None:
    assert TargetReference.parse("reviews@2") == TargetReference("reviews@2", 1)
    assert TargetReference.parse("reviews=0") == TargetReference("reviews", 0)
    for wrong in ("reviews=", "reviews=x", "reviews=-1", "reviews=1000001", "=5"):
        with pytest.raises(InvalidInputError):
            TargetReference.parse(wrong)


def test_messages_become_json_values_with_numbers_as_numbers() -> None:
    job = training_job_pb2.TrainingJob(name="trainingJobs/a")
    job.status.state = job_state_pb2.JOB_STATE_FAILED
    job.status.create_time.CopyFrom(timestamp_pb2.Timestamp(seconds=1))
    job.status.metrics.add(name="loss", value=0.5)
    job.status.error.CopyFrom(status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone"))
    job.status.error.details.add().Pack(error_details_pb2.ErrorInfo(reason="DATASET_NOT_FOUND"))
    shown = plain(job)
    assert shown["status"]["state"] == "JOB_STATE_FAILED"
    assert shown["status"]["create_time"] == "1970-01-01T00:00:01Z"
    assert shown["status"]["error"] == {"code": "NOT_FOUND", "message": "gone", "reason": "DATASET_NOT_FOUND"}
    assert "hyperparameters" not in shown, "what is absent is left out"
    model = model_pb2.Model(version_count=2**40, tags={"b": "2", "a": "1"})
    assert json.loads(json.dumps(plain(model)))["version_count"] == 2**40
    assert plain(model)["tags"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(4_120_000), "4.1 MB"),
        (bytes_text(5e12), "5000.0 GB"),
        (duration_text(0.04), "0.0 s"),
        (duration_text(59), "59 s"),
        (duration_text(125), "2 min"),
        (duration_text(7500), "2 h 5 min"),
        (duration_text(200_000), "2 d"),
        (state_text("JOB_STATE_RUNNING"), "running"),
        (state_text("DEPLOYMENT_STATE_READY"), "ready"),
        (short_version("models/reviews/versions/3"), "reviews@3"),
        (short_version(""), ""),
    ],
)
def test_values_read_as_people_say_them(found: str, text: str) -> None:
    assert found == text


def test_doctor_says_what_to_do_about_a_port_and_a_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        findings = {one.check: one for one in examine(tmp_path / "file" / "home", taken.getsockname()[1])}
    assert not findings["port"].ok
    assert "--port" in findings["port"].advice
    assert not findings["home"].ok
    assert "--home" in findings["home"].advice
    assert all(finding.advice for finding in findings.values() if not finding.ok)
    assert findings["python"].ok


def test_down_without_a_cluster_fails_with_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["down", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == f"maas: no cluster is running in {tmp_path}\n"


def test_logs_of_nothing_say_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "registry.log").write_text("one\ntwo\nthree\n")
    shown = CliRunner().invoke(app, ["logs", "registry", "--home", str(tmp_path), "--lines", "2"])
    assert shown.stdout == "two\nthree\n"
    missing = CliRunner().invoke(app, ["logs", "nothing", "--home", str(tmp_path)])
    assert missing.exit_code == 1
    assert "there are: registry" in missing.stderr

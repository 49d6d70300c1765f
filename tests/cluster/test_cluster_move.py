"""docs/move-to-postgresql-and-s3.md, command by command, with a cluster whose model serves before and after."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from postgresql_server import PostgresqlServer
from s3_server import S3Server

from cluster_under_test import Cluster, small_package, started_cluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "move-to-postgresql-and-s3.md"


def run(cluster: Cluster, script: str, **more: str) -> str:
    environment = os.environ | {
        "MAAS_HOME": str(cluster.home),
        "MAAS_ENDPOINT": cluster.endpoint,
        # What `source .venv/bin/activate` does, for the environment that runs the tests.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{cluster.logs()}"
    return result.stdout


def recorded(cluster: Cluster) -> list[Any]:
    """What the registry says of all that it holds."""
    return [
        cluster.json("models", "ls"),
        cluster.json("models", "show", "films"),
        cluster.json("models", "show", "films@2"),
    ]


def test_the_commands_of_the_page_move_a_registry_that_goes_on_serving(
    postgresql: PostgresqlServer, s3: S3Server, tmp_path: Path
) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    settings, *commands = blocks
    assert settings.count("export ") == 2
    database, blobs = postgresql.new_database(), s3.new_bucket()
    with started_cluster() as cluster:
        for seed in (1, 2):
            package = small_package(tmp_path / str(seed), seed)
            cluster.maas("models", "push", "films", str(package.folder))
        cluster.maas("models", "alias", "films@1", "production")
        cluster.maas("deploy", "films", "films@production")
        before = recorded(cluster)
        answer = cluster.json("predict", "films", "--text", "a great film")
        script = "".join(commands).replace("maas up --detach", f"maas up --detach --port {cluster.port}")
        assert f"--port {cluster.port}" in script
        printed = run(cluster, script, DATABASE=database, BLOBS=blobs)
        assert "films" in printed
        assert recorded(cluster) == before
        (cluster.home / "registry" / "registry.sqlite").rename(tmp_path / "old.sqlite")
        (cluster.home / "registry" / "blobs").rename(tmp_path / "old blobs")
        assert cluster.json("predict", "films", "--text", "a great film") == answer
        assert cluster.maas("models", "pull", "films@2", str(tmp_path / "pulled")).returncode == 0
        moved = cluster.json("models", "push", "films", str(tmp_path / "1"))
        assert "models/films/versions/3" in json.dumps(moved)

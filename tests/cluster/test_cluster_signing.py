"""docs/signing.md, command by command, on a real cluster."""

import os
import re
import subprocess
import sys
from pathlib import Path

from cluster_under_test import Cluster

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "signing.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_every_command_of_the_page_works_as_it_stands(cluster: Cluster, reviews: str, tmp_path: Path) -> None:
    assert len(BLOCKS) == 7
    environment = os.environ | {
        "MAAS_HOME": str(cluster.home),
        "MAAS_ENDPOINT": cluster.endpoint,
        "MAAS_KEY_PASSWORD": "an-example",  # which a reader's shell keeps from block to block
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    printed = []
    try:
        for text in BLOCKS:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text.replace("8080", str(cluster.port))],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}\n{cluster.logs()}"
            printed.append(result.stdout + result.stderr)
        assert "is signed by none of the trusted keys" in printed[4]
        assert "trusting" in printed[5]
        assert cluster.json("deployments", "show", "signed")["trusted_keys"] == [
            (tmp_path / "second.key.pub").read_text()
        ]
    finally:
        cluster.maas("undeploy", "signed", check=False)

"""The commands of docs/datasets.md, in order, against a registry."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from registry_process import running_registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)


def test_every_code_block_of_the_page_works_as_it_stands(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(BLOCKS) == 5
    with running_registry(tmp_path_factory.mktemp("r")) as endpoint:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAAS_")}
        environment |= {
            "MAAS_ENDPOINT": endpoint,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        for language, text in BLOCKS:
            command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
            result = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
            )
            assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        assert "train" in result.stdout
        assert (tmp_path / "copy" / "train.parquet").is_file()

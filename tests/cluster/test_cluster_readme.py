"""The README's section "Use", command by command, as a newcomer types it: only the port and the home are others."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster_under_test import free_port

ROOT = Path(__file__).resolve().parents[2]


def blocks() -> list[tuple[str, str]]:
    """Language and text of each code block of the section."""
    section = (ROOT / "README.md").read_text().split("## Use\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def test_every_code_block_of_the_readme_works_as_it_stands() -> None:
    with tempfile.TemporaryDirectory(prefix="maas-readme-") as home:
        port = str(free_port())
        environment = os.environ | {
            "MAAS_HOME": home,
            "MAAS_ENDPOINT": f"127.0.0.1:{port}",
            # What `source .venv/bin/activate` does, for the environment that runs the tests.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

        def run(language: str, text: str) -> str:
            text = text.replace("8080", port).replace("source .venv/bin/activate", ":")
            text = text.replace("maas up --detach ", f"maas up --detach --port {port} ")
            command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
            result = subprocess.run(
                command, env=environment, cwd=home, capture_output=True, text=True, timeout=400, check=False
            )
            assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
            return result.stdout

        try:
            printed = {language: "" for language, _ in blocks()}
            promised = ""
            for language, text in blocks():
                if language == "json":
                    promised = text
                    answer = json.loads(printed["bash"])
                    assert set(answer) == set(json.loads(promised)), "the README shows the fields of a real answer"
                    assert answer["predicted"] in (0, 1)
                else:
                    printed[language] = run(language, text)
            assert promised
            assert "probabilities" in printed["python"] or "positive" in printed["python"]
        finally:
            subprocess.run(
                [sys.executable, "-m", "maas.cli", "down"],
                env=environment,
                capture_output=True,
                timeout=60,
                check=False,
            )

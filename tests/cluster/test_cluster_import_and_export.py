"""docs/import-and-export.md, command by command, in a folder with the files that it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from cluster_under_test import Cluster
from maas_package.package import read_package

ROOT = Path(__file__).resolve().parents[2]


def blocks() -> list[str]:
    """Return the page's blocks of commands."""
    page = (ROOT / "docs" / "import-and-export.md").read_text()
    return re.findall(r"```bash\n(.*?)```", page, re.DOTALL)


def prepare(folder: Path) -> None:
    """Make the files of the page."""
    shutil.copytree(ROOT / "tests" / "data" / "hugging_face" / "bert-classifier", folder / "sentiment-bert")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "any", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "any.onnx")
    torch.save({"w": torch.zeros(2)}, folder / "pytorch_model.bin")


def test_every_command_of_the_page_works_as_it_stands(cluster: Cluster, tmp_path: Path) -> None:
    prepare(tmp_path)
    environment = os.environ | {
        "MAAS_HOME": str(cluster.home),
        "MAAS_ENDPOINT": cluster.endpoint,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    printed = []
    for block in blocks():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}\n{cluster.logs()}"
        printed.append(done.stdout + done.stderr)
    predicted, exported, carried, refused = printed
    assert "neutral" in predicted
    assert read_package(tmp_path / "package").manifest.labels == ("negative", "neutral", "positive")
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert {path.name for path in (tmp_path / "triton").iterdir()} == {"any", "sentiment"}
    assert "wrote sentiment@1 to triton" in exported
    assert "stored sentiment-again@1" in carried
    first, again = (cluster.json("models", "show", f"{name}@1")["files"] for name in ("sentiment", "sentiment-again"))
    assert {one["blob"] for one in first} == {one["blob"] for one in again}
    assert refused.startswith("refused\n")
    assert "data.pkl" in refused
    cluster.maas("undeploy", "sentiment")

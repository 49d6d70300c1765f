"""MLServer with a runtime of its own and adaptive batching, in one process; started, it writes its settings."""

import json
import os
import sys
import tempfile
from pathlib import Path

import models


def main() -> None:
    model, port = sys.argv[1], int(sys.argv[2])
    signature = models.SIGNATURES[model]
    folder = Path(tempfile.mkdtemp(prefix="mlserver-", dir=os.environ["TMPDIR"]))
    (folder / model).mkdir()
    ports = {"grpc_port": port, "http_port": port + 1, "metrics_port": port + 2}
    (folder / "settings.json").write_text(
        json.dumps({"host": "127.0.0.1", **ports, "debug": False, "parallel_workers": 0})
    )
    (folder / model / "model-settings.json").write_text(
        json.dumps(
            {
                "name": model,
                "implementation": "mlserver_runtime.Runtime",
                "max_batch_size": int(os.environ["BENCH_MAX_BATCH_ROWS"]),
                "max_batch_time": float(os.environ["BENCH_DELAY_MS"]) / 1000,
                "inputs": [{"name": signature.input, "datatype": "INT64", "shape": [-1, signature.tokens]}],
                "outputs": [{"name": signature.output, "datatype": "FP32", "shape": [-1, signature.width]}],
            }
        )
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    binary = Path(sys.executable).with_name("mlserver")
    os.chdir(folder)
    os.execv(binary, [str(binary), "start", str(folder)])


if __name__ == "__main__":
    main()

"""Becomes `bentoml serve`: adaptive batching, one worker process, JSON over HTTP."""

import os
import sys
from pathlib import Path

os.environ |= {"BENCH_MODEL": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
os.chdir(Path(__file__).parent)
binary = Path(sys.executable).with_name("bentoml")
os.execv(binary, [str(binary), "serve", "bentoml_service:Bench", "--host", "127.0.0.1", "--port", sys.argv[2]])

"""What the services of jobs may load: their steps do the heavy work, in processes of their own."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "pyarrow", "tokenizers", "safetensors")


@pytest.mark.parametrize("service", ["maas_training", "maas_compression"])
def test_a_service_of_jobs_loads_no_library_of_its_steps(service: str) -> None:
    program = f"import sys, {service}.__main__; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_step_does_not_load_the_job_store() -> None:
    program = (
        "import sys, maas_jobs.step, maas_jobs.transfer; print('dbos' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False False"

"""What this host can compute with; decided here, by looking at it, never by a package."""

import os
import platform
from pathlib import Path

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_DEVICES = Path("/dev")
_NVIDIA_FOLDER = Path("/proc/driver/nvidia/gpus")


def describe_hardware() -> str:
    """Return what a measurement holds for: the processor's name, how many cores this process may use, the GPU."""
    gpu = _gpu_name()
    return f"{_cpu_field('model name') or platform.machine()}, {core_count()} cores" + (f", {gpu}" if gpu else "")


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def processor_flags() -> frozenset[str]:
    """Return what the processor can, in Linux's words: `avx2`, `avx512_vnni`, .... Nothing where nobody says."""
    return frozenset((_cpu_field("flags") or _cpu_field("Features")).split())


def has_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; where it does not, it is slower than float32."""
    return not _BF16_FLAGS.isdisjoint(processor_flags())


def has_nvidia_gpu() -> bool:
    """Return whether there is a GPU that CUDA can use."""
    return any(_DEVICES.glob("nvidia[0-9]*"))


def _gpu_name() -> str:
    if not has_nvidia_gpu():
        return ""
    for information in sorted(_NVIDIA_FOLDER.glob("*/information")):
        for line in information.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "NVIDIA GPU"


def _cpu_field(name: str) -> str:
    """Return a field of the first processor; nothing where there is no such field."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition("\t")[0].strip() == name), "")

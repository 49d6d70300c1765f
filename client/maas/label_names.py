"""Names of the classes that a label's numbers stand for, kept in a Parquet file's own metadata.

The schema's metadata has the key `maas.label_names`: a JSON list of texts, the name of class 0 first. Without it a
class is called by its number.
"""

import json
from collections.abc import Mapping, Sequence

_KEY = b"maas.label_names"


def label_names_metadata(names: Sequence[str]) -> dict[bytes, bytes]:
    """Return what to put into a schema's metadata."""
    return {_KEY: json.dumps(list(names)).encode()}


def label_names(metadata: Mapping[bytes, bytes] | None, classes: int) -> tuple[str, ...]:
    """Return the names of classes 0 to `classes` - 1: those in the metadata if they fit, else the numbers."""
    numbers = tuple(str(label) for label in range(classes))
    try:
        names = json.loads((metadata or {}).get(_KEY, b"[]"))
    except ValueError:
        return numbers
    fit = isinstance(names, list) and len(set(map(str, names))) == classes and all(isinstance(n, str) for n in names)
    return tuple(names) if fit else numbers

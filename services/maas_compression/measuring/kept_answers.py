"""Answers of a model, kept in a file so that no other process asks for them again; read a batch at a time."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from maas_package.tensors import Array


class KeptAnswers:
    """What `keep_answers` wrote: the outputs of each batch, by its number."""

    def __init__(self, path: Path) -> None:
        self._file = np.load(path, allow_pickle=False)
        self._names: dict[int, list[str]] = {}
        for key in self._file.files:
            number, _, name = key.partition("/")
            self._names.setdefault(int(number), []).append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> dict[str, Array]:
        return {name: self._file[f"{number}/{name}"] for name in self._names[number]}


def keep_answers(path: Path, batches: Iterable[Mapping[str, Array]]) -> None:
    """Write the outputs of all batches. The file is there at once and whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of this process's own: several trials may come here at the same time, and each is right.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for number, outputs in enumerate(batches):
                for name, tensor in outputs.items():
                    with archive.open(f"{number}/{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.ascontiguousarray(tensor), allow_pickle=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

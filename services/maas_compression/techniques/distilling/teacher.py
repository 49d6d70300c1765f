"""What the teacher answers to each text, worked out once and kept on disk.

The answers do not change from epoch to epoch, and an engine computes them several times faster than torch does.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maas_engine.predictor import Predictor
from maas_engine.quality import length_batches

_PART_TEXTS = 1024


def teacher_answers(
    teacher: Predictor, texts: Iterable[str], path: Path, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Return the teacher's first output, logits or vectors, of each text: float32 [N, C], read from `path`.

    What a killed run left there is kept, and the rest is added. `advance` is told how many texts are done.
    """
    columns = teacher.package.manifest.outputs[0].shape[-1]
    part_bytes = _PART_TEXTS * columns * 4
    whole_parts = path.stat().st_size // part_bytes if path.is_file() else 0
    done = whole_parts * _PART_TEXTS
    with path.open("r+b" if whole_parts else "wb") as file:
        file.truncate(whole_parts * part_bytes)
        file.seek(0, os.SEEK_END)
        for part in _parts(islice(texts, done, None)):
            file.write(_answers(teacher, part, columns).tobytes())
            file.flush()
            done += len(part)
            advance(done)
    return np.memmap(path, np.float32, "r").reshape(-1, columns)


def _answers(teacher: Predictor, texts: list[str], columns: int) -> NDArray[np.float32]:
    name = teacher.package.manifest.outputs[0].name
    answers = np.empty((len(texts), columns), np.float32)
    for indices in length_batches(texts):
        answers[indices] = teacher.predict_texts([texts[index] for index in indices]).outputs[name]
    return answers


def _parts(texts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(texts, _PART_TEXTS)):
        yield part

"""A push and a training hold a part of the data at a time: each in a process, whose peak memory is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 400_000
MOST_KIB = 150_000
SENTENCE = "a film about nothing that goes on for ever and says it twice " * 6

# Peaks are what the kernel says, in KiB; what the libraries take themselves is not counted.
PUSH = """
import resource, sys
from pathlib import Path
from maas.datasets.prepare import PrepareOptions, prepare_splits
from maas.datasets.splitting import Shares
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
splits = prepare_splits({"train": [Path(sys.argv[1])]}, Path(sys.argv[2]), PrepareOptions(shares=Shares(test=0.1)))
assert sum(split.row_count for split in splits.values()) == int(sys.argv[3])
print(peak() - before)
"""
READ = """
import resource, sys
from pathlib import Path
import numpy as np
from maas_jobs.labelled_rows import open_labelled_split
from maas_learning.encoded_rows import store_rows
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
split = open_labelled_split(Path(sys.argv[1]))
words = ((np.arange(100) % (len(text) + 1), label) for text, label in split.rows())
with store_rows(Path(sys.argv[2]), words, padding_id=0) as rows:
    assert len(rows) == len(split)
    sum(int(rows.tokens(row)[0]) for row in np.random.default_rng(0).permutation(len(rows)))
print(peak() - before)
"""


def peak_kib(program: str, *arguments: object) -> int:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "reviews.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        file.writelines(f"{SENTENCE}{row},{row % 2}\n" for row in range(ROWS))
    return path


def test_a_push_and_a_training_hold_a_part_of_the_data_at_a_time(table: Path, tmp_path: Path) -> None:
    assert table.stat().st_size // 1024 > 140_000, "in Python's own objects more than twice that"
    (tmp_path / "out").mkdir()
    assert peak_kib(PUSH, table, tmp_path / "out", ROWS) < MOST_KIB
    assert peak_kib(READ, tmp_path / "out" / "train.parquet", tmp_path / "ids") < MOST_KIB

"""A job's folder with a tiny source and data, to search in."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

from maas_package.architectures import load_architecture
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

_GOOD, _BAD = ("great", "moving", "fine", "funny"), ("dull", "awful", "weak", "boring")


def make_job_folder(folder: Path, rows: int = 60) -> Path:
    """Write the package of an LSTM that knows nothing, and splits of rows that are easy to learn."""
    torch.manual_seed(1)
    texts = [f"a {(_BAD, _GOOD)[row % 2][row // 2 % 4]} film number {row % 7}" for row in range(rows)]
    tokenizer = build_word_tokenizer(texts, 100)
    architecture = load_architecture("lstm-text-classifier")
    config = {"vocabulary_size": tokenizer.vocabulary_size, "embedding_size": 128, "hidden_size": 32}
    package_trained_model(
        folder / "source",
        architecture=architecture,
        config=config,
        module=architecture.build(config).eval(),
        tokenizer=tokenizer,
        labels=("negative", "positive"),
    )
    table = pyarrow.table({"text": texts, "label": [row % 2 for row in range(rows)]})
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}.parquet")
    return folder

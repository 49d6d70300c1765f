"""Small models of texts and the rows that they are made smaller with."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from job_cluster import Rows, reviews

from maas_compression.materials import Materials
from maas_jobs.labelled_rows import open_labelled_split
from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

TEXTS = tuple(text for text, _ in reviews(12))
CONFIGS = {
    "lstm-text-classifier": {"embedding_size": 16, "hidden_size": 16},
    "bert-text-classifier": {"hidden_size": 32, "layers": 2, "heads": 4, "inner_size": 64, "positions": 64},
}


def small_package(folder: Path, architecture_name: str = "bert-text-classifier") -> Package:
    """Make a package of an untrained classifier of two classes."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    tokenizer = build_word_tokenizer([text for text, _ in reviews(40)], 100, max_tokens=32)
    architecture = load_architecture(architecture_name)
    config = {"vocabulary_size": tokenizer.vocabulary_size, **CONFIGS[architecture_name]}
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=architecture.build(config),
        tokenizer=tokenizer,
        labels=("negative", "positive"),
    )


def write_rows(path: Path, rows: Rows) -> None:
    """Write a split."""
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "label": pyarrow.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def materials(folder: Path) -> Materials:
    """Return easy rows to learn from and to choose by."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    for name, rows in (("train", reviews(64)), ("validation", reviews(16))):
        write_rows(folder / f"{name}.parquet", rows)
    return Materials(
        scratch,
        train=open_labelled_split(folder / "train.parquet"),
        validation=open_labelled_split(folder / "validation.parquet"),
    )

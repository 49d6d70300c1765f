"""What takes part in the compression bench: forms of one model, made by single tools, by peers, and by this project.

What a tool wrote is kept in the bench's scratch folder, so that a further run only measures it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
from compression_models import CompressionModels
from numpy.typing import NDArray
from peers import NEURAL_COMPRESSOR
from report import say

from maas_compression.spec import RESULT_FOLDER, SOURCE_FOLDER, CompressionSpec
from maas_engine.engine import choose_servable, open_engine
from maas_engine.predictor import Predictor
from maas_jobs.job import JsonObject
from maas_jobs.labelled_rows import LabelledSplit
from maas_jobs.reports import Done, Log, Report, decode_report
from maas_jobs.reports import Failed as StepFailed
from maas_jobs.step import StepRequest, write_request
from maas_jobs.transfer import split_path
from maas_package.manifest import Servable
from maas_package.package import Package, read_package
from maas_package.text import TextTokenizer

CALIBRATION_ROWS = 300
STEP_BYTES = 12 * 2**30
"""What a step of a training or a compression may take."""
_ENTRANT = "entrant.json"
_TIMES_ITS_LIMIT = 2


@dataclass(frozen=True, slots=True)
class Entrant:
    """One form of a model: `texts` has the tokenizer, `package` the file that `servable` names."""

    name: str
    texts: Package
    package: Package
    servable: Servable
    size_bytes: int
    seconds: float = 0.0
    """What making it took; 0 for the model as it is."""
    note: str = ""

    def open(self) -> Predictor:
        """Load it for one thread."""
        return Predictor(self.texts, open_engine(self.package, self.servable, 1))


@dataclass(frozen=True, slots=True)
class Failed:
    """A tool that gave nothing, and what it said."""

    name: str
    why: str


class JobFailed(Exception):
    """A job's step gave no result; the text says why."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows as word ids, and their classes."""

    ids: tuple[NDArray[np.int64], ...]
    labels: NDArray[np.int64]
    padding_id: int

    def padded(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Return int64 [N, T], right-padded."""
        tokens = np.full((len(rows), max(len(self.ids[row]) for row in rows)), self.padding_id, np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(self.ids[row])] = self.ids[row]
        return tokens

    def batches(self, rows: int = 32) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield tokens and classes, rows of like length together."""
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            yield self.padded(chosen), self.labels[chosen]


Make = Callable[[Path, Path, CompressionModels], tuple[Servable, str]]
"""Takes the source's ONNX file and a folder to write to; returns what it wrote there, and a note."""


def as_it_is(name: str, package: Package, engine: str) -> Entrant:
    """Return a servable that the package has."""
    servable = next(one for one in package.manifest.servables if (one.engine, one.precision) == (engine, "fp32"))
    return Entrant(name, package, package, servable, package.servable_bytes(servable))


def from_file(name: str, source: Package, file: Path, engine: str) -> Entrant:
    """Return an ONNX file of the source's network."""
    package = Package(file.parent, source.manifest)
    return Entrant(name, source, package, Servable(engine, "fp32", file.name), file.stat().st_size)


def by_tool(name: str, source: Package, file: Path, made: CompressionModels, make: Make) -> Entrant | Failed:
    """Return what a tool makes of an ONNX file of the source's network, or made of it before."""
    folder = made.folder / "made" / name.replace(" ", "-").replace(",", "")
    if not (folder / _ENTRANT).exists():
        say(f"making {name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun = time.monotonic()
        try:
            servable, note = make(file, folder, made)
        # A tool's failure is a row of the table, whatever it raises.
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
            (folder / _ENTRANT).write_text(json.dumps({"failed": why}))
            return Failed(name, why)
        written = {"engine": servable.engine, "precision": servable.precision, "path": servable.path, "note": note}
        (folder / _ENTRANT).write_text(json.dumps(written | {"seconds": time.monotonic() - begun}))
    read = json.loads((folder / _ENTRANT).read_text())
    if "failed" in read:
        return Failed(name, read["failed"])
    servable = Servable(read["engine"], read["precision"], read["path"])
    size_bytes = sum(path.stat().st_size for path in folder.glob("model.*"))
    return Entrant(name, source, Package(folder, source.manifest), servable, size_bytes, read["seconds"], read["note"])


def by_maas(name: str, source: Package, made: CompressionModels, spec: CompressionSpec) -> Entrant | Failed:
    """Return what the step `compress` of a compression job makes of the source, or made of it before."""
    folder = made.folder / "made" / name.replace(" ", "-").replace(",", "")
    if not (folder / _ENTRANT).exists():
        shutil.rmtree(folder, ignore_errors=True)
        prepare_job(folder, source, made, spec)
        say(f"making {name}")
        begun = time.monotonic()
        try:
            result = run_job(folder)
        except JobFailed as error:
            return Failed(name, str(error))
        written = {"seconds": time.monotonic() - begun, "note": "; ".join(result.get("recipe", [])), "result": result}
        (folder / _ENTRANT).write_text(json.dumps(written))
    read = json.loads((folder / _ENTRANT).read_text())
    if "report" not in read["result"]:
        return Failed(name, f"no version: {read['result']['search']['answer']['verdict']}")
    package = read_package(folder / RESULT_FOLDER)
    servable = choose_servable(package)
    size_bytes = package.servable_bytes(servable)
    return Entrant(name, package, package, servable, size_bytes, read["seconds"], read["note"])


def prepare_job(folder: Path, source: Package, made: CompressionModels, spec: CompressionSpec) -> None:
    """Make a job's folder as the step `fetch` leaves it."""
    shutil.copytree(source.folder, folder / SOURCE_FOLDER)
    for name in ("train", "validation", "test"):
        path = split_path(folder, name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(made.folder / path.name, path)
    write_request(StepRequest(folder, "compressionJobs/bench", spec.to_json(), {"dataset_version": ""}, "", STEP_BYTES))


def run_job(folder: Path) -> JsonObject:
    """Run the step `compress`, tell of its log, and return its result. Raises JobFailed."""
    command = [sys.executable, "-m", "maas_compression.run", str(folder)]
    last: Report | None = None
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = decode_report(line.rstrip("\n"))
            if isinstance(last, Log):
                say(f"{folder.name}: {last.text}")
    match last:
        case Done(result):
            return result
        case StepFailed(error):
            raise JobFailed(f"{error.reason}: {error.message}")
    raise JobFailed(f"the step ended with status {process.returncode}")


def tokens_of(package: Package, split: LabelledSplit, rows: int | None = None) -> Tokens:
    """Return the first rows of a split as the package's word ids."""
    text = package.manifest.text
    assert text is not None
    tokenizer = TextTokenizer.from_file(package.path(text.tokenizer), text.max_tokens)
    parts = list(split.parts())
    texts = [one for part in parts for one in part.texts][:rows]
    labels = np.array([label for part in parts for label in part.labels][:rows], np.int64)
    return Tokens(tuple(tokenizer.encode([one])[0] for one in texts), labels, tokenizer.padding_id)


# The tools. Each has the settings that its own documentation begins with.


def onnxruntime_dynamic(per_channel: bool) -> Make:
    """Make onnxruntime's dynamic 8-bit form."""

    def make(onnx: Path, folder: Path, made: CompressionModels) -> tuple[Servable, str]:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        del made
        quantize_dynamic(onnx, folder / "model.onnx", per_channel=per_channel, weight_type=QuantType.QInt8)
        return Servable("onnxruntime", "int8", "model.onnx"), ""

    return make


def nncf_post_training(onnx: Path, folder: Path, made: CompressionModels) -> tuple[Servable, str]:
    """Make NNCF's static 8-bit form, calibrated with 300 rows of `train`."""
    import nncf

    model = _openvino_model(onnx)
    quantized = nncf.quantize(
        model, _nncf_calibration(model, made), subset_size=CALIBRATION_ROWS, model_type=nncf.ModelType.TRANSFORMER
    )
    return _save_openvino(quantized, folder, "int8"), ""


def nncf_int4(onnx: Path, folder: Path, made: CompressionModels) -> tuple[Servable, str]:
    """Make NNCF's form with 4-bit weights, embeddings too, groups of 64."""
    import nncf

    del made
    model = nncf.compress_weights(
        _openvino_model(onnx), mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, ratio=1.0, all_layers=True
    )
    return _save_openvino(model, folder, "int4"), ""


def nncf_accuracy_aware(max_loss: float) -> Make:
    """Let NNCF put layers back to float until the loss on `validation` is small enough."""

    def make(onnx: Path, folder: Path, made: CompressionModels) -> tuple[Servable, str]:
        import nncf

        model = _openvino_model(onnx)
        validation = tokens_of(made.minilm, made.split("validation"))
        seen = []

        def accuracy(compiled: Any, items: Iterable[Any]) -> tuple[float, None]:
            right = rows = 0
            for tokens, labels in items:
                logits = next(iter(compiled(tokens).values()))
                right += int((logits.argmax(1) == labels).sum())
                rows += len(labels)
            seen.append(right / rows)
            return seen[-1], None

        name = model.input(0).any_name
        batches = nncf.Dataset(list(validation.batches()), lambda item: {name: item[0]})
        quantized = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=_nncf_calibration(model, made),
            validation_dataset=batches,
            validation_fn=accuracy,
            max_drop=max_loss,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=CALIBRATION_ROWS,
            model_type=nncf.ModelType.TRANSFORMER,
        )
        return _save_openvino(quantized, folder, "int8"), f"{len(seen)} validations"

    return make


def neural_compressor(approach: str, max_loss: float, seconds: float) -> Make:
    """Let Intel Neural Compressor look for a form that loses no more than it may."""

    def make(onnx: Path, folder: Path, made: CompressionModels) -> tuple[Servable, str]:
        calibration = tokens_of(made.minilm, made.split("train"), CALIBRATION_ROWS)
        validation = tokens_of(made.minilm, made.split("validation"))
        np.savez(
            folder / "rows.npz",
            calibration_ids=np.concatenate(calibration.ids),
            calibration_lengths=[len(one) for one in calibration.ids],
            ids=np.concatenate(validation.ids),
            lengths=[len(one) for one in validation.ids],
            labels=validation.labels,
        )
        scratch = models.scratch_folder()
        NEURAL_COMPRESSOR.setup(scratch)
        what = [onnx, made.minilm.manifest.inputs[0].name, folder / "rows.npz", folder / "model.onnx", max_loss]
        with (folder / "log").open("w") as log:
            done = subprocess.run(
                NEURAL_COMPRESSOR.command(scratch, *what, seconds, approach),
                cwd=folder,
                check=True,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # It looks at its own limit between trials only, and a trial may take as long as it likes.
                timeout=_TIMES_ITS_LIMIT * seconds,
            )
        found = json.loads(done.stdout.splitlines()[-1])
        if not found["found"]:
            raise RuntimeError(f"nothing found in {found['trials']} trials, {found['seconds']:.0f} s")
        return Servable("onnxruntime", "int8", "model.onnx"), f"{found['trials']} trials"

    return make


def _openvino_model(onnx: Path) -> Any:
    import openvino

    return openvino.Core().read_model(str(onnx))


def _save_openvino(model: Any, folder: Path, precision: str) -> Servable:
    import openvino

    from maas_engine.openvino_engine import weights_path

    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    (folder / "model.bin").rename(weights_path(folder / "model.xml"))
    return Servable("openvino", precision, "model.xml")


def _nncf_calibration(model: Any, made: CompressionModels) -> Any:
    import nncf

    name = model.input(0).any_name
    rows = tokens_of(made.minilm, made.split("train"), CALIBRATION_ROWS)
    return nncf.Dataset([{name: one[None]} for one in rows.ids])

"""The trainable form of a package: weights to a torch module and back, and from there to ONNX.

Imports torch: of what serves, only the torch engine imports this module. What writes ONNX imports onnx and onnxruntime
inside its functions, so that a process which only loads a module pays for neither.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maas_package.architectures import Architecture, load_architecture
from maas_package.manifest import (
    TEXT_CLASSIFICATION,
    ArchitectureRef,
    FixedPointStorage,
    Float32Storage,
    Manifest,
    Servable,
    Storage,
    TextInput,
    Weights,
)
from maas_package.package import Package, write_package
from maas_package.text import TextTokenizer
from maas_runtime.failures import InvalidInput

WEIGHTS_PATH = "model.safetensors"
TOKENIZER_PATH = "tokenizer.json"
ONNX_PATH = "servables/onnxruntime/model.onnx"
TEXT_INPUT = "text"

# float32 sums in another order: the largest difference seen between a trained LSTM's two forms is 1.2e-6.
ONNX_TOLERANCE = 1e-4

_EXPORT_ROWS = 7
_CHECK_SEEDS = range(5)


class TrainableFormMissing(InvalidInput):
    """The package has only servables: no architecture, or no weights."""

    reason = "TRAINABLE_FORM_MISSING"


class WeightsInvalid(InvalidInput):
    """The weights do not fit the architecture or their storage."""

    reason = "WEIGHTS_INVALID"


class ExportDiffers(InvalidInput):
    """The ONNX form answers otherwise than the module."""

    reason = "EXPORT_DIFFERS"


def load_module(package: Package) -> nn.Module:
    """Build the package's network and fill in its weights, dequantized; in evaluation mode, on the CPU.

    Leaves torch's random generator as it was. Raises TrainableFormMissing, WeightsInvalid, or what the architecture
    raises for its configuration.
    """
    manifest = package.manifest
    if manifest.architecture is None or manifest.weights is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    architecture = load_architecture(manifest.architecture.name)
    config = architecture.parse_config(manifest.architecture.config)
    tensors = load_weights(package.path(manifest.weights.path), manifest.weights.storage)
    # On the meta device first: a configuration that the file does not fill must not cost its memory.
    with torch.device("meta"):
        _check_shapes(tensors, architecture.build(config).state_dict())
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(config)
    module.load_state_dict(tensors, strict=True)
    return module.eval()


def load_weights(path: Path, storage: Storage) -> dict[str, Tensor]:
    """Read a safetensors file; fixed-point integers become float32. Raises WeightsInvalid."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsInvalid(f"{path.name} cannot be read: {error}") from error
    match storage:
        case Float32Storage():
            return tensors
        case FixedPointStorage(scales):
            for name, scale in scales.items():
                if name not in tensors or tensors[name].is_floating_point():
                    raise WeightsInvalid(f"{path.name} has no integers called {name}, for which there is a scale")
                # In float64, so that an integer above 2^24 is rounded once.
                tensors[name] = (tensors[name].double() * scale).float()
            return tensors


def save_weights(module: nn.Module, path: Path, storage: Storage | None = None) -> None:
    """Write the module's tensors as safetensors.

    With FixedPointStorage, a tensor with a scale becomes round(w / scale) in the smallest of int8, int16 and int32
    that holds it. Raises WeightsInvalid where none does.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    match storage or Float32Storage():
        case Float32Storage():
            pass
        case FixedPointStorage(scales):
            for name, scale in scales.items():
                if name not in tensors or not tensors[name].is_floating_point():
                    raise WeightsInvalid(f"there are no weights called {name}, for which there is a scale")
                tensors[name] = _to_integers(tensors[name], scale, name)
    save_file(tensors, path)


def export_onnx(module: nn.Module, architecture: Architecture, config: Mapping[str, object], path: Path) -> float:
    """Write the module as ONNX with free sizes where the architecture has -1; return the largest difference.

    An architecture that writes its own graph is asked for it (lstm_text_classifier.py says why it does, with
    numbers); the others go through torch.onnx.export(dynamo=True), since dynamo=False is deprecated in 2.13. Raises
    ExportDiffers when the two forms differ by more than ONNX_TOLERANCE.
    """
    import onnx

    module = module.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    model = architecture.onnx_model(module, config)
    if model is None:
        _export_with_torch(module, architecture, config, path)
    else:
        onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    difference = onnx_difference(module, architecture, config, path)
    if not difference <= ONNX_TOLERANCE:
        raise ExportDiffers(
            f"the ONNX form of {architecture.name} differs by {difference:.2g}, more than {ONNX_TOLERANCE:g}"
        )
    return difference


def onnx_difference(module: nn.Module, architecture: Architecture, config: Mapping[str, object], path: Path) -> float:
    """Return the largest difference of any output between the module and an ONNX file of it, on random inputs.

    The inputs are the architecture's examples: one row, and batches with padding. NaN anywhere gives NaN.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for seed in _CHECK_SEEDS:
        rows = 1 if seed == 0 else _EXPORT_ROWS + seed
        inputs = architecture.example_inputs(config, rows, seed)
        with torch.inference_mode():
            answer = module(*inputs.values())
        expected = answer if isinstance(answer, tuple) else (answer,)
        actual = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        differences += [np.abs(a - e.numpy()).max() for a, e in zip(actual, expected, strict=True)]
    return float(np.max(differences))


def package_trained_model(
    folder: Path,
    *,
    architecture: Architecture,
    config: Mapping[str, object],
    module: nn.Module,
    tokenizer: TextTokenizer,
    labels: tuple[str, ...],
    storage: Storage | None = None,
    task: str = TEXT_CLASSIFICATION,
) -> Package:
    """Make the whole package of a model of texts in `folder`, which must be new or empty.

    The servable is made from the weights as they are stored, so with a fixed-point storage it has their rounding;
    maas_engine.publish adds those of other engines.
    Raises WeightsInvalid or ExportDiffers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    storage = storage or Float32Storage()
    config = architecture.parse_config(config)
    save_weights(module, folder / WEIGHTS_PATH, storage)
    with torch.random.fork_rng(devices=[]):
        stored = architecture.build(config)
    stored.load_state_dict(load_weights(folder / WEIGHTS_PATH, storage), strict=True)
    difference = export_onnx(stored, architecture, config, folder.joinpath(*ONNX_PATH.split("/")))
    tokenizer.save(folder / TOKENIZER_PATH)
    inputs = architecture.inputs(config)
    manifest = Manifest(
        task=task,
        inputs=inputs,
        outputs=architecture.outputs(config),
        labels=labels,
        text=TextInput(TEXT_INPUT, inputs[0].name, TOKENIZER_PATH, tokenizer.max_tokens),
        architecture=ArchitectureRef(architecture.name, config),
        weights=Weights(WEIGHTS_PATH, storage),
        servables=(Servable("onnxruntime", "fp32", ONNX_PATH, ONNX_TOLERANCE, difference),),
    )
    return write_package(folder, manifest)


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = sorted(set(expected) - set(tensors))
    surplus = sorted(set(tensors) - set(expected))
    if missing or surplus:
        raise WeightsInvalid(f"the weights do not fit the architecture: missing {missing}, unknown {surplus}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.is_floating_point() != expected[name].is_floating_point():
            raise WeightsInvalid(
                f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {expected[name].dtype} "
                f"{list(expected[name].shape)}"
            )


def _to_integers(tensor: Tensor, scale: float, name: str) -> Tensor:
    integers = torch.round(tensor.double() / scale)
    largest = integers.abs().max().item() if integers.numel() else 0.0
    for dtype in (torch.int8, torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return integers.to(dtype)
    raise WeightsInvalid(f"{name} does not fit 32-bit integers at the scale {scale:g}; take fewer fraction bits")


def _export_with_torch(module: nn.Module, architecture: Architecture, config: Mapping[str, object], path: Path) -> None:
    inputs = architecture.example_inputs(config, _EXPORT_ROWS, 0)
    specs = architecture.inputs(config)
    dynamic_shapes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if size == -1} for spec in specs
    )
    with warnings.catch_warnings():
        # torch's own exporter uses what torch has deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=[spec.name for spec in specs],
            output_names=[spec.name for spec in architecture.outputs(config)],
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )

"""qat: trains on with weights and activations rounded as int8 will round them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from maas_compression.materials import Materials
from maas_compression.recipe import Qat
from maas_compression.techniques.distilling.lessons import LEARNED, SEED, Lesson, require_data, take_lesson
from maas_compression.techniques.repackage import repackage
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import TrainableFormMissing, load_module

MATRIX_LEVELS = 64
"""int8 gives a matrix's weights 7 of their 8 bits (techniques/int8.py says why): -64 to 64."""
_WHOLE_LEVELS = 255
_SMALLEST_SCALE = 1e-8
_BATCH_ROWS = 32


def apply_qat(source: Package, technique: Qat, folder: Path, materials: Materials) -> Package:
    """Write the package whose weights lie on the grid of int8 to `folder`, which must be new or empty.

    It is as large and as fast as the source; int8 after it loses next to nothing by rounding weights. It learns from
    the source's own answers and the labels. Raises TrainableFormMissing, TrainingDataMissing, LabelsInvalid or
    LossNotFinite.
    """
    require_data(source, materials)
    manifest = source.manifest
    if manifest.text is None:
        raise TrainableFormMissing("this version takes no texts, so no dataset can be learned from")
    tokenizer = TextTokenizer.from_file(source.path(manifest.text.tokenizer), manifest.text.max_tokens)
    rounded = RoundedModule(load_module(source))
    torch.manual_seed(SEED)
    lesson = Lesson(
        technique.epochs, technique.learning_rate, _BATCH_ROWS, technique.temperature, technique.soft_weight
    )
    take_lesson(rounded, lesson, source, tokenizer, materials)
    materials.progress(LEARNED, "package")
    return repackage(source, rounded.settled(), folder)


class RoundedModule(nn.Module):
    """A module that computes as int8 would, and learns as if rounding were not there.

    Jacob et al., 2018 (arXiv:1712.05877, section 3): of a matrix w' = s * round(w / s), s = max|w| / 64 for each
    output; of an embedding, and of what goes into a matrix, x' = s * round(x / s), s = (max - min) / 255 of all of it,
    as onnxruntime's dynamic quantization does. Gradients pass the rounding unchanged (Bengio et al., 2013,
    arXiv:1308.3432). The rounding is torch's own fake_quantize; its quantizers in torch.ao are deprecated in favour of
    torchao, and would want the modules to be rewritten.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._roundings: dict[str, Callable[[Tensor], Tensor]] = {}
        self._hooks = []
        for path, part in module.named_modules():
            rounding = round_as_a_whole if isinstance(part, nn.Embedding) else round_by_output
            self._roundings |= {f"{path}.{name}": rounding for name in _weights_of(part)}
            if isinstance(part, nn.Linear | nn.LSTM):
                self._hooks.append(part.register_forward_pre_hook(_round_input))

    def forward(self, tokens: Tensor) -> Tensor:
        """Answer as the module does, rounded."""
        answer: Tensor = functional_call(self.module, self._rounded(), (tokens,))
        return answer

    def settled(self) -> nn.Module:
        """Return the module itself, with its weights rounded for good and activations as they come."""
        with torch.no_grad():
            for name, rounded in self._rounded().items():
                self.module.get_parameter(name).copy_(rounded)
        for hook in self._hooks:
            hook.remove()
        return self.module

    def _rounded(self) -> dict[str, Tensor]:
        return {name: rounding(self.module.get_parameter(name)) for name, rounding in self._roundings.items()}


def round_by_output(weights: Tensor) -> Tensor:
    """Return a matrix [outputs, inputs] rounded to MATRIX_LEVELS on either side of 0, with a scale for each output."""
    scales = (weights.detach().abs().amax(dim=1) / MATRIX_LEVELS).clamp(min=_SMALLEST_SCALE)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weights, scales, zeros, 0, -MATRIX_LEVELS, MATRIX_LEVELS)


def round_as_a_whole(values: Tensor) -> Tensor:
    """Return a tensor rounded to 256 numbers between its smallest and its largest, 0 among them."""
    low, high = min(float(values.detach().min()), 0.0), max(float(values.detach().max()), 0.0)
    scale = max((high - low) / _WHOLE_LEVELS, _SMALLEST_SCALE)
    zero = min(max(round(-low / scale), 0), _WHOLE_LEVELS)
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _WHOLE_LEVELS)
    return rounded


def _weights_of(part: nn.Module) -> tuple[str, ...]:
    match part:
        case nn.Linear() | nn.Embedding():
            return ("weight",)
        case nn.LSTM():
            return tuple(name for name, _ in part.named_parameters() if name.startswith("weight_"))
    return ()


def _round_input(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    del part
    first, *others = inputs
    return (round_as_a_whole(first), *others)

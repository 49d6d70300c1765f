"""prune: takes weights or parts of a network away.

`weights` and `two_of_four` set weights to zero (prune_masks.py): the file is as large and as fast as before. The other
structures leave the network, so it is smaller and faster in any format and on any engine: `hidden_units` of the LSTM
(prune_lstm.py), `heads`, `channels` and `layers` of BERT's networks (prune_transformer.py).
"""

from pathlib import Path

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from maas_compression.materials import Materials
from maas_compression.recipe import Prune
from maas_compression.techniques import prune_lstm, prune_transformer
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_compression.techniques.prune_data import calibration_batches
from maas_compression.techniques.prune_masks import (
    graph_matrices,
    inputs_last,
    magnitude_masks,
    module_matrices,
    two_of_four_mask,
)
from maas_compression.techniques.prune_recovery import RECOVER_BEGINS, RECOVER_ENDS, recover
from maas_compression.techniques.repackage import repackage
from maas_package.architectures.bert import BertSentenceEncoder, BertTextClassifier
from maas_package.architectures.lstm_text_classifier import LstmTextClassifier
from maas_package.manifest import JsonObject
from maas_package.package import Package
from maas_package.trainable import TrainableFormMissing, WeightsInvalid, load_module
from maas_runtime.failures import InvalidInput

_CALIBRATION_ROWS = 1024
_CHOOSE, _FIT = 0.0, 0.2
_MASKS = ("weights", "two_of_four")
_OF_TRANSFORMERS = ("heads", "channels", "layers")


class PruneNotApplicable(InvalidInput):
    """The network has no such structure, or so little of it that nothing would go."""

    reason = "PRUNE_NOT_APPLICABLE"


def apply_prune(source: Package, technique: Prune, folder: Path, materials: Materials) -> Package:
    """Write the pruned package to `folder`, which must be new or empty.

    Structures that leave the network are chosen on texts of the split train (or unlabelled ones), and what stays is
    fitted to them. With `recovery_epochs` the result is then trained with its source as teacher. Raises
    PruneNotApplicable, TrainableFormMissing, TrainingDataMissing or WeightsInvalid.
    """
    if source.manifest.architecture is None:
        return _mask_graph(source, technique, folder)
    module = load_module(source)
    if not all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values() if tensor.is_floating_point()):
        raise WeightsInvalid("a weight is NaN or infinity; train the model anew")
    masks: dict[str, Tensor] = {}
    config: JsonObject = source.manifest.architecture.config
    smaller = module
    if technique.structure in _MASKS:
        smaller = load_module(source)
        masks = _mask_module(smaller, technique)
    else:
        smaller, config = _remove(source, module, technique, materials)
    if technique.recovery_epochs:
        materials.progress(RECOVER_BEGINS, "recover")
        recover(source, module, smaller, masks, technique.recovery_epochs, materials)
    materials.progress(RECOVER_ENDS, "package")
    return repackage(source, smaller, folder, config=config)


def _remove(source: Package, module: nn.Module, technique: Prune, materials: Materials) -> tuple[nn.Module, JsonObject]:
    _check_structure(module, technique.structure)
    batches = calibration_batches(source, materials, _CALIBRATION_ROWS)
    materials.progress(_CHOOSE, "choose")
    match module:
        case LstmTextClassifier():
            units = prune_lstm.keep_units(source, module, batches, technique.share)
            _check_something_goes(technique, module.lstm.hidden_size - len(units), "multiples of 8 units stay")
            smaller_lstm, config = prune_lstm.cut(source, module, units)
            materials.progress(_FIT, "fit")
            prune_lstm.fit(module, smaller_lstm, units, batches)
            return smaller_lstm, config
        case BertTextClassifier() | BertSentenceEncoder():
            kept = prune_transformer.keep(source, module, batches, technique.structure, technique.share)
            whole = prune_transformer.whole(module)
            _check_something_goes(technique, whole.parts - kept.parts, "channels go in blocks of 16")
            smaller, config = prune_transformer.cut(source, module, kept)
            materials.progress(_FIT, "fit")
            prune_transformer.fit(module, smaller, kept, batches)
            materials.log(
                f"kept layers {list(kept.layers)}, heads {config['heads']}, inner sizes {config['inner_size']}"
            )
            return smaller, config
    raise _not_applicable(module, technique.structure)


def _check_structure(module: nn.Module, structure: str) -> None:
    of_lstm, of_transformer = structure == "hidden_units", structure in _OF_TRANSFORMERS
    fits = (isinstance(module, LstmTextClassifier) and of_lstm) or (
        isinstance(module, BertTextClassifier | BertSentenceEncoder) and of_transformer
    )
    if not fits:
        raise _not_applicable(module, structure)


def _not_applicable(module: nn.Module, structure: str) -> PruneNotApplicable:
    match module:
        case LstmTextClassifier():
            advice = "it has hidden_units, and weights or two_of_four as masks"
        case BertTextClassifier() | BertSentenceEncoder():
            advice = "it has heads, channels and layers, and weights or two_of_four as masks"
        case _:
            advice = "of an architecture that is not this project's only weights and two_of_four are known"
    return PruneNotApplicable(f"{type(module).__name__} has no {structure} to take away: {advice}")


def _check_something_goes(technique: Prune, gone: int, why: str) -> None:
    if gone == 0:
        raise PruneNotApplicable(
            f"a share of {technique.share:g} of this network's {technique.structure} is none ({why}): take more"
        )


def _mask_module(module: nn.Module, technique: Prune) -> dict[str, Tensor]:
    """Set weights to zero, in place; return which stay."""
    matrices = module_matrices(module)
    arrays = {name: parameter.detach().numpy() for name, parameter in matrices.items()}
    if technique.structure == "two_of_four":
        found = {name: two_of_four_mask(array) for name, array in arrays.items()}
    else:
        found = magnitude_masks(arrays, technique.share)
    masks = {name: torch.from_numpy(mask) for name, mask in found.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            matrices[name].mul_(mask)
    return masks


def _mask_graph(source: Package, technique: Prune, folder: Path) -> Package:
    if technique.structure not in _MASKS or technique.recovery_epochs:
        raise TrainableFormMissing(
            "only the trainable form says where a network's parts are, and can be trained: take the version that this "
            "one was made from, or the structure weights or two_of_four without recovery_epochs"
        )
    model = float_graph(source)
    matrices = graph_matrices(model)
    if not matrices:
        raise PruneNotApplicable("the graph has no layer with float weights (Conv, Gemm, MatMul, LSTM, GRU, RNN)")
    if technique.structure == "two_of_four":
        pruned = {}
        for name, matrix in matrices.items():
            pruned[name] = matrix.copy()
            rows = inputs_last(model, name, pruned[name])
            rows *= two_of_four_mask(rows)
    else:
        masks = magnitude_masks(matrices, technique.share)
        pruned = {name: matrix * masks[name] for name, matrix in matrices.items()}
    for tensor in model.graph.initializer:
        if tensor.name in pruned:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(pruned[tensor.name]), tensor.name))
    return write_graph_package(source, model, folder, precision="fp32")

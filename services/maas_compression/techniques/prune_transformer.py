"""prune for BERT's networks: attention heads, channels of the wide parts, and layers leave the network.

What stays is fitted again by least squares, layer by layer from the input on, so that the sum of each part and its
residual comes out as in the whole network although its inputs have changed. Heads and channels are chosen as
prune_columns.py says. That takes one pass with gradients and one without over a few hundred texts, and no training.

Shapes: M tokens of all texts, H hidden_size, I inputs of a part's output layer, L layers.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from maas_compression.techniques.prune_columns import (
    Elimination,
    Matrix,
    cheapest,
    covariance_of,
    eliminate,
    refit,
    sensitive,
)
from maas_compression.techniques.prune_data import answers_to_derive, divergence
from maas_package.architectures import load_architecture
from maas_package.architectures.bert import FIRST, BertEncoder, BertLayer, BertTextClassifier
from maas_package.manifest import JsonObject
from maas_package.package import Package

_CHANNELS_AT_ONCE = 16
"""onnxruntime's matrix product works on blocks of 16 columns: fewer channels in a block are no faster."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays: layers by their number before, and of each the heads and channels."""

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    channels: tuple[tuple[int, ...], ...]

    @property
    def parts(self) -> int:
        """How many layers, heads and channels there are."""
        return len(self.layers) + sum(map(len, self.heads)) + sum(map(len, self.channels))


def keep(source: Package, module: nn.Module, batches: list[Tensor], structure: str, share: float) -> Kept:
    """Return all but `share` of the network's heads, channels or layers."""
    match structure:
        case "heads":
            return keep_heads(source, module, batches, share)
        case "channels":
            return keep_channels(source, module, batches, share)
    return keep_layers(source, module, batches, share)


def keep_heads(source: Package, module: nn.Module, batches: list[Tensor], share: float) -> Kept:
    """Return all but `share` of the network's heads; a layer may lose all.

    Where only the first word's state is asked for, a head of the last layer takes half the time of another (keys and
    values of all words, query and output of one), so it is let go for half the cost only.
    """
    layers = _layers(module)
    eliminations = _eliminations(source, module, batches, "attention_output", layers[0].head_size)
    worths = [1.0] * len(layers)
    if _needs_first_only(module):
        worths[-1] = 0.5
    gone = cheapest(eliminations, share, 1, worths)
    kept = whole(module)
    return Kept(kept.layers, tuple(map(_without, kept.heads, gone)), kept.channels)


def keep_channels(source: Package, module: nn.Module, batches: list[Tensor], share: float) -> Kept:
    """Return all but `share` of the wide parts' channels, in blocks of 16; a layer may lose all.

    Where only the first word's state is asked for, the last layer's wide part takes no time to speak of, and stays.
    """
    eliminations = _eliminations(source, module, batches, "inner_output", 1)
    if _needs_first_only(module):
        eliminations[-1] = Elimination((), ())
    gone = cheapest(eliminations, share, _CHANNELS_AT_ONCE, [1.0] * len(eliminations))
    kept = whole(module)
    return Kept(kept.layers, kept.heads, tuple(map(_without, kept.channels, gone)))


def keep_layers(source: Package, module: nn.Module, batches: list[Tensor], share: float) -> Kept:
    """Return all but `share` of the layers, each time without the one whose absence changes the answers least."""
    encoder = _encoder(module)
    layers = _layers(module)
    left = list(range(len(layers)))
    with torch.inference_mode():
        answers = [module(tokens) for tokens in batches]
        try:
            for _ in range(min(round(share * len(layers)), len(layers) - 1)):
                changes = []
                for layer in left:
                    encoder.layers = nn.ModuleList(layers[one] for one in left if one != layer)
                    changes.append(
                        sum(
                            divergence(source, before, module(tokens))
                            for before, tokens in zip(answers, batches, strict=True)
                        )
                    )
                del left[int(np.argmin(changes))]
        finally:
            encoder.layers = nn.ModuleList(layers)
    kept = whole(module)
    return Kept(tuple(left), tuple(kept.heads[layer] for layer in left), tuple(kept.channels[layer] for layer in left))


def whole(module: nn.Module) -> Kept:
    """Return everything that there is."""
    layers = _layers(module)
    return Kept(
        tuple(range(len(layers))),
        tuple(tuple(range(layer.heads)) for layer in layers),
        tuple(tuple(range(layer.inner_size)) for layer in layers),
    )


def cut(source: Package, module: nn.Module, kept: Kept) -> tuple[nn.Module, JsonObject]:
    """Return the network of what is kept, with the weights it had there, and its configuration.

    It answers as the whole one with everything else set to zero.
    """
    assert source.manifest.architecture is not None
    architecture = load_architecture(source.manifest.architecture.name)
    before = _layers(module)
    config = architecture.parse_config(
        {
            **source.manifest.architecture.config,
            "layers": len(kept.layers),
            "heads": [len(heads) for heads in kept.heads],
            "inner_size": [len(channels) for channels in kept.channels],
            "head_size": before[0].head_size,
        }
    )
    with torch.random.fork_rng(devices=[]):
        smaller = architecture.build(config).eval()
    outside = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("encoder.layers.")}
    smaller.load_state_dict(outside, strict=False)
    with torch.no_grad():
        norm = _encoder(smaller).norm
        for layer, number, heads, channels in zip(
            _layers(smaller), kept.layers, kept.heads, kept.channels, strict=True
        ):
            _copy_layer(before[number], layer, heads, channels)
            for part, bias, norm_before in (
                (layer.heads, "attention_output", norm),
                (layer.inner_size, "inner_output", layer.attention_norm),
            ):
                if not part and hasattr(before[number], bias):
                    norm_before.bias.add_(getattr(before[number], bias).bias)
            norm = layer.output_norm
    return smaller, config


def fit(module: nn.Module, smaller: nn.Module, kept: Kept, batches: list[Tensor]) -> None:
    """Give the smaller network's output layers, in place, the weights with which it follows the whole one best."""
    with torch.inference_mode():
        _Fit(module, smaller, batches).run(kept)


def _eliminations(
    source: Package, module: nn.Module, batches: list[Tensor], part: str, group_size: int
) -> list[Elimination]:
    """Return, for each layer, in which order the inputs of `part` go."""
    outputs = [getattr(layer, part, None) for layer in _layers(module)]
    moments = [None if output is None else _OutputMoments(output) for output in outputs]
    for number in answers_to_derive(source, module, batches, _SEED):
        number.backward()  # type: ignore[no-untyped-call]
    module.zero_grad(set_to_none=True)
    found = []
    for moment in moments:
        if moment is None:
            found.append(Elimination((), ()))
            continue
        moment.close()
        weight = moment.output.weight.detach().numpy().astype(np.float64)
        found.append(eliminate(sensitive(weight, moment.gradients / moment.rows), moment.covariance(), group_size))
    return found


class _OutputMoments:
    """Sums up what goes into a part's output layer, and the gradients at what comes out, while the network runs.

    A token at which nothing is asked of the part, such as padding, does not count.
    """

    def __init__(self, output: nn.Linear) -> None:
        self.output = output
        self.gradients: Matrix = np.zeros((output.out_features, output.out_features))
        self.rows = 0
        self._inputs: Matrix = np.zeros((output.in_features + 1, output.in_features + 1))
        self._seen: Tensor | None = None
        self._hooks = (
            output.register_forward_pre_hook(self._see_inputs),
            output.register_full_backward_hook(self._see_gradients),
        )

    def covariance(self) -> Matrix:
        """Return that of the inputs: [I, I]."""
        return covariance_of(self._inputs)

    def close(self) -> None:
        """Look no longer."""
        for hook in self._hooks:
            hook.remove()

    def _see_inputs(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        self._seen = inputs[0].detach()

    def _see_gradients(self, module: nn.Module, to_inputs: tuple[Tensor, ...], to_outputs: tuple[Tensor, ...]) -> None:
        del module, to_inputs
        assert self._seen is not None
        gradients = to_outputs[0].flatten(0, 1)
        asked = gradients.abs().amax(dim=1) > 0
        inputs = _with_one(self._seen.flatten(0, 1)[asked])
        self._inputs += (inputs.T @ inputs).double().numpy()
        self.gradients += (gradients[asked].T @ gradients[asked]).double().numpy()
        self.rows += len(self._seen)


class _Fit:
    def __init__(self, module: nn.Module, smaller: nn.Module, batches: list[Tensor]) -> None:
        self._whole, self._smaller = module, smaller
        self._needs_first_only = _needs_first_only(module)
        # What both networks have made of each batch so far: [N, T, H].
        self._before, self._after, self._unseen, self._words = [], [], [], []
        for tokens in batches:
            states, unseen, is_word = _encoder(module).embedded(tokens)
            self._before.append(states)
            self._after.append(_encoder(smaller).embedded(tokens)[0])
            self._unseen.append(unseen)
            self._words.append(is_word)

    def run(self, kept: Kept) -> None:
        layers, smaller_layers = _layers(self._whole), _layers(self._smaller)
        norm = _encoder(self._smaller).norm
        for layer in layers[: kept.layers[0]]:
            self._before = self._next(layer)
        ends = (*kept.layers[1:], len(layers))
        for smaller, number, end in zip(smaller_layers, kept.layers, ends, strict=True):
            self._fit_attention(layers[number], smaller, norm)
            # What comes out is what came out of the layers that are gone after this one.
            self._fit_wide_part(layers[number], layers[number + 1 : end], smaller)
            norm = smaller.output_norm

    def _fit_attention(self, layer: BertLayer, smaller: BertLayer, norm: nn.LayerNorm) -> None:
        wanted = [
            layer.add_attention(states, unseen) for states, unseen in zip(self._before, self._unseen, strict=True)
        ]
        inputs = [
            smaller.attended(states, unseen) if smaller.heads else states[..., :0]
            for states, unseen in zip(self._after, self._unseen, strict=True)
        ]
        output = smaller.attention_output if smaller.heads else None
        self._after = self._fitted(inputs, wanted, output, norm, self._is_last(smaller))
        self._before = [layer.attention_norm(states) for states in wanted]
        self._after = [smaller.attention_norm(states) for states in self._after]

    def _fit_wide_part(self, layer: BertLayer, gone: list[BertLayer], smaller: BertLayer) -> None:
        wanted = [layer.add_wide_part(states) for states in self._before]
        for next_layer in gone:
            self._before = [layer.output_norm(states) for states in wanted]
            self._before = [
                next_layer.attention_norm(next_layer.add_attention(states, unseen))
                for states, unseen in zip(self._before, self._unseen, strict=True)
            ]
            wanted = [next_layer.add_wide_part(states) for states in self._before]
            layer = next_layer
        smaller.output_norm.load_state_dict(layer.output_norm.state_dict())
        inputs = [smaller.widened(states) if smaller.inner_size else states[..., :0] for states in self._after]
        output = smaller.inner_output if smaller.inner_size else None
        self._after = self._fitted(inputs, wanted, output, smaller.attention_norm, self._is_last(smaller))
        self._before = [layer.output_norm(states) for states in wanted]
        self._after = [smaller.output_norm(states) for states in self._after]

    def _next(self, layer: BertLayer) -> list[Tensor]:
        return [layer(states, unseen) for states, unseen in zip(self._before, self._unseen, strict=True)]

    def _is_last(self, smaller: BertLayer) -> bool:
        return smaller is _layers(self._smaller)[-1]

    def _fitted(
        self,
        inputs: list[Tensor],
        wanted: list[Tensor],
        output: nn.Linear | None,
        norm: nn.LayerNorm,
        is_last: bool,
    ) -> list[Tensor]:
        """Return residual + output(inputs), after fitting it to what is wanted."""
        hidden_size = norm.bias.shape[0]
        size = inputs[0].shape[-1] + 1
        cross, moment = np.zeros((hidden_size, size)), np.zeros((size, size))
        for given, target, states, is_word in zip(inputs, wanted, self._after, self._words, strict=True):
            counts = is_word.clone()
            if is_last and self._needs_first_only:
                counts[:, 1:] = False
            given_words = _with_one(given[counts])
            cross += ((target - states)[counts].T @ given_words).double().numpy()
            moment += (given_words.T @ given_words).double().numpy()
        if output is None:
            bias = torch.from_numpy(cross[:, 0] / moment[0, 0]).float()
            norm.bias.add_(bias)
            return [states + bias for states in self._after]
        prior = np.concatenate([output.weight.numpy(), output.bias.numpy()[:, None]], axis=1).astype(np.float64)
        fitted = torch.from_numpy(refit(cross, moment, prior)).float()
        output.weight.copy_(fitted[:, :-1])
        output.bias.copy_(fitted[:, -1])
        return [states + output(given) for states, given in zip(self._after, inputs, strict=True)]


def _copy_layer(before: BertLayer, after: BertLayer, heads: tuple[int, ...], channels: tuple[int, ...]) -> None:
    for norm in ("attention_norm", "output_norm"):
        getattr(after, norm).load_state_dict(getattr(before, norm).state_dict())
    if heads:
        size = before.head_size
        inputs = torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])
        rows = torch.cat([part * before.heads * size + inputs for part in range(3)])
        _copy_linear(before.query_key_value, after.query_key_value, rows=rows)
        _copy_linear(before.attention_output, after.attention_output, columns=inputs)
    if channels:
        _copy_linear(before.inner, after.inner, rows=torch.tensor(channels))
        _copy_linear(before.inner_output, after.inner_output, columns=torch.tensor(channels))


def _copy_linear(
    before: nn.Linear, after: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    after.bias.copy_(before.bias if rows is None else before.bias[rows])
    weight = before.weight if rows is None else before.weight[rows]
    after.weight.copy_(weight if columns is None else weight[:, columns])


def _with_one(inputs: Tensor) -> Tensor:
    """Return [M, I] with a 1 behind each row: [M, I + 1]."""
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def _without(kept: tuple[int, ...], gone: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(kept) - set(gone)))


def _needs_first_only(module: nn.Module) -> bool:
    """Return whether of the last layer's states only the first token's is looked at."""
    return isinstance(module, BertTextClassifier) or getattr(module, "pooling", "") == FIRST


def _encoder(module: nn.Module) -> BertEncoder:
    return cast(BertEncoder, module.encoder)


def _layers(module: nn.Module) -> list[BertLayer]:
    return [cast(BertLayer, layer) for layer in _encoder(module).layers]

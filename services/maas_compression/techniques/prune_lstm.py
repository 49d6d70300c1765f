"""prune for the LSTM's classifier: hidden units leave the network.

A unit is a row of each of the four gates, a column of the recurrent matrix and an input of the output layer. Units
are chosen as prune_columns.py says, the recurrent matrix and the output layer being what they go into; then both are
fitted to give the whole network's gates and logits from the states that are left. No training.

Shapes: N texts of a batch, T tokens, E embedding_size, H hidden_size, K units that are kept, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maas_compression.techniques.prune_columns import Matrix, covariance_of, eliminate, refit, sensitive
from maas_compression.techniques.prune_data import answers_to_derive
from maas_package.architectures import load_architecture
from maas_package.architectures.lstm_text_classifier import PADDING_ID, LstmTextClassifier
from maas_package.manifest import JsonObject
from maas_package.package import Package

_UNITS_AT_ONCE = 8
"""Numbers of units that are multiples of this are what processors' registers hold."""
_FITS = 3
"""Each fit changes the states that the next one is made on."""
_SEED = 0


def keep_units(source: Package, module: LstmTextClassifier, batches: list[Tensor], share: float) -> tuple[int, ...]:
    """Return all but `share` of the units, a multiple of 8 of them."""
    size = module.lstm.hidden_size
    gate_squares, output_squares = np.zeros(4 * size), np.zeros((module.output.out_features,) * 2)
    states_sum: Matrix = np.zeros((size + 1, size + 1))
    rows = 0
    runs: list[_Run] = []

    def answers(tokens: Tensor) -> Tensor:
        runs.append(_unrolled(module, tokens))
        runs[-1].logits.retain_grad()
        return runs[-1].logits

    for number in answers_to_derive(source, answers, batches, _SEED):
        number.backward()  # type: ignore[no-untyped-call]
        run = runs.pop()
        assert run.change.grad is not None
        assert run.logits.grad is not None
        gate_squares += run.change.grad.square().sum((0, 1)).double().numpy()
        output_squares += (run.logits.grad.T @ run.logits.grad).double().numpy()
        states_sum += _product(_with_one(run.states[run.is_word]).detach())
        rows += len(run.logits)
    module.zero_grad(set_to_none=True)
    recurrent = _parameter(module.lstm, "weight_hh_l0").detach().numpy().astype(np.float64)
    output = module.output.weight.detach().numpy().astype(np.float64)
    weight = np.concatenate(
        [np.sqrt(gate_squares / rows)[:, None] * recurrent, sensitive(output, output_squares / rows)]
    )
    gates_of_units = np.arange(size)[:, None] + size * np.arange(4)
    elimination = eliminate(weight, covariance_of(states_sum), 1, gates_of_units)
    return tuple(sorted(elimination.order[size - kept_count(size, share) :]))


def kept_count(size: int, share: float) -> int:
    """Return how many units stay: the multiple of 8 that is nearest, 8 at least."""
    return min(size, max(1, round(size * (1 - share) / _UNITS_AT_ONCE)) * _UNITS_AT_ONCE)


def cut(source: Package, module: LstmTextClassifier, kept: tuple[int, ...]) -> tuple[LstmTextClassifier, JsonObject]:
    """Return the network of the kept units with the weights they had, and its configuration.

    It answers as the whole one in which the other units' states are always zero.
    """
    assert source.manifest.architecture is not None
    architecture = load_architecture(source.manifest.architecture.name)
    config = architecture.parse_config({**source.manifest.architecture.config, "hidden_size": len(kept)})
    units = torch.tensor(kept)
    rows = torch.cat([gate * module.lstm.hidden_size + units for gate in range(4)])
    weights = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        weights[f"lstm.{name}"] = weights[f"lstm.{name}"][rows]
    for name in ("lstm.weight_hh_l0", "output.weight"):
        weights[name] = weights[name][:, units]
    with torch.random.fork_rng(devices=[]):
        smaller = architecture.build(config).eval()
    assert isinstance(smaller, LstmTextClassifier)
    smaller.load_state_dict(weights)
    return smaller, config


def fit(module: LstmTextClassifier, smaller: LstmTextClassifier, kept: tuple[int, ...], batches: list[Tensor]) -> None:
    """Give the smaller network, in place, the recurrent matrix and output layer with which it follows the whole one."""
    units = torch.tensor(kept)
    rows = torch.cat([gate * module.lstm.hidden_size + units for gate in range(4)])
    with torch.inference_mode():
        wanted = [_unrolled(module, tokens) for tokens in batches]
        for turn in range(_FITS):
            # At first from the states that there should be: those of the network that was only cut may be far off.
            states = [run.states[..., units] for run in wanted] if turn == 0 else _states(smaller, batches)
            _fit_once(smaller, wanted, states, rows, batches)


def _states(smaller: LstmTextClassifier, batches: list[Tensor]) -> list[Tensor]:
    return [_unrolled(smaller, tokens).states for tokens in batches]


def _fit_once(
    smaller: LstmTextClassifier, wanted: list["_Run"], states: list[Tensor], rows: Tensor, batches: list[Tensor]
) -> None:
    lstm, output = smaller.lstm, smaller.output
    size, classes = lstm.hidden_size, output.out_features
    gate_cross, gate_moment = np.zeros((4 * size, size + 1)), np.zeros((size + 1, size + 1))
    output_cross, output_moment = np.zeros((classes, size + 1)), np.zeros((size + 1, size + 1))
    for run, state, tokens in zip(wanted, states, batches, strict=True):
        from_words = smaller.embedding(tokens) @ _parameter(lstm, "weight_ih_l0").T + _parameter(lstm, "bias_ih_l0")
        before = torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1)
        given = _with_one(before[run.is_word])
        gate_cross += _product((run.gates[..., rows] - from_words)[run.is_word], given)
        gate_moment += _product(given)
        last = _with_one(state[torch.arange(len(state)), run.last])
        output_cross += _product(run.logits, last)
        output_moment += _product(last)
    for weight, bias, cross, moment in (
        (_parameter(lstm, "weight_hh_l0"), _parameter(lstm, "bias_hh_l0"), gate_cross, gate_moment),
        (output.weight, output.bias, output_cross, output_moment),
    ):
        prior = torch.cat([weight, bias[:, None]], dim=1).double().numpy()
        fitted = torch.from_numpy(refit(cross, moment, prior)).float()
        weight.copy_(fitted[:, :-1])
        bias.copy_(fitted[:, -1])


@dataclass(frozen=True, slots=True)
class _Run:
    """What an LSTM made of a batch.

    `gates`: [N, T, 4H], before their functions; `change`: zeros that were added to them; `states`: [N, T, H]; `logits`:
    [N, C]; `is_word`: bool [N, T]; `last`: int64 [N], where each text ends.
    """

    change: Tensor
    gates: Tensor
    states: Tensor
    logits: Tensor
    is_word: Tensor
    last: Tensor


def _unrolled(module: LstmTextClassifier, tokens: Tensor) -> _Run:
    """Run the network step by step, as torch's LSTM does inside, where gates cannot be seen.

    The gradient of `change`, one tensor for all steps, is that of the gates.
    """
    lstm = module.lstm
    rows, time = tokens.shape
    embedded = module.embedding(tokens)
    change = torch.zeros(rows, time, 4 * lstm.hidden_size, requires_grad=torch.is_grad_enabled())
    state = cell = torch.zeros(rows, lstm.hidden_size)
    all_gates, states = [], []
    bias = _parameter(lstm, "bias_ih_l0") + _parameter(lstm, "bias_hh_l0")
    from_words = embedded @ _parameter(lstm, "weight_ih_l0").T + bias
    recurrent = _parameter(lstm, "weight_hh_l0").T
    for step in range(time):
        gates = from_words[:, step] + state @ recurrent + change[:, step]
        entry, forget, new, exit_ = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        state = exit_.sigmoid() * cell.tanh()
        all_gates.append(gates)
        states.append(state)
    is_word = tokens != PADDING_ID
    last = is_word.sum(dim=1).clamp(min=1) - 1
    stacked = torch.stack(states, dim=1)
    logits = module.output(stacked[torch.arange(rows), last])
    return _Run(change, torch.stack(all_gates, dim=1), stacked, logits, is_word, last)


def _parameter(lstm: nn.LSTM, name: str) -> nn.Parameter:
    """Return one of the parameters, whose attributes have no type."""
    return lstm.get_parameter(name)


def _with_one(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def _product(left: Tensor, right: Tensor | None = None) -> Matrix:
    product: Matrix = (left.T @ (left if right is None else right)).double().numpy()
    return product

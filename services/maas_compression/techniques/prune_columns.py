"""Which inputs of a linear layer can go, and what the remaining ones have to do instead. Nothing here is trained.

y = W x + b. Without the inputs S, the best W' on the rest differs from W, in the mean over the data, by

    cost(S) = trace(V_S (C^-1_SS)^-1 V_S^T),  V = G^(1/2) W,

C the covariance of x, G the mean of g g^T for the gradient g of the network's answer at y. That is Optimal Brain
Surgeon (Hassibi and Stork, 1992) for whole columns, as ZipLM (Kurtic et al., 2023, arXiv:2302.04089) takes structures
out of transformers, with the output's side of K-FAC (Martens and Grosse, 2015, arXiv:1503.05671), which makes costs
in different layers comparable: each is an estimate of twice the loss that the removal adds.

Shapes: O outputs, I inputs, K inputs that are kept, P inputs of one group, one group being what goes at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_RIDGE = 1e-4
"""Share of an input's mean variance that is added to each variance."""
_LEAST_VARIANCE = 1e-12
_ROUNDING = 1e-5
_FLUSH_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Elimination:
    """All groups in the order in which they go, and what each adds to the cost."""

    order: tuple[int, ...]
    costs: tuple[float, ...]


def eliminate(
    weight: Matrix, covariance: Matrix, group_size: int, outputs: NDArray[np.intp] | None = None
) -> Elimination:
    """Take groups of `group_size` neighbouring inputs away, each time the one that costs least now.

    `weight` is V, [O, I]. `outputs`, [groups, some], are those that nobody needs when a group has gone. The inverse
    covariance after a removal is a rank-P update of the one before, of which only diagonal blocks are kept up to date
    at each step: 1,536 channels take about two seconds.
    """
    return _Elimination(weight, covariance, group_size, outputs).run()


class _Elimination:
    def __init__(self, weight: Matrix, covariance: Matrix, group_size: int, outputs: NDArray[np.intp] | None) -> None:
        inputs = covariance.shape[0]
        self._size = group_size
        self._outputs = outputs
        self._groups = inputs // group_size
        self._weight = weight.copy()
        damped = ridged(covariance)
        self._inverse = np.linalg.inv(damped)
        # No block of an inverse has smaller eigenvalues, but for rounding.
        self._floor = 1 / np.trace(damped)
        self._updates = np.zeros((inputs, 0))
        by_group = self._inverse.reshape(self._groups, group_size, self._groups, group_size)
        self._blocks = np.stack([by_group[group, :, group, :] for group in range(self._groups)])
        self._alive = np.ones(self._groups, bool)

    def run(self) -> Elimination:
        order, costs = [], []
        for _ in range(self._groups):
            scores = np.where(self._alive, self._scores(), np.inf)
            group = int(scores.argmin())
            order.append(group)
            costs.append(float(scores[group]))
            self._remove(group)
        return Elimination(tuple(order), tuple(costs))

    def _scores(self) -> Matrix:
        if self._size == 1:
            single: Matrix = np.einsum("oi,oi->i", self._weight, self._weight) / np.maximum(
                self._blocks[:, 0, 0], self._floor
            )
            return single
        columns = self._weight.reshape(-1, self._groups, self._size).transpose(1, 2, 0)
        scores: Matrix = (columns * np.linalg.solve(self._blocks, columns)).sum(axis=(1, 2))
        return scores

    def _remove(self, group: int) -> None:
        here = slice(group * self._size, (group + 1) * self._size)
        column = self._inverse[:, here] - self._updates @ self._updates[here].T
        values, vectors = np.linalg.eigh(self._blocks[group])
        roots = vectors / np.sqrt(np.maximum(values, self._floor))
        update = column @ roots
        self._weight -= (self._weight[:, here] @ roots) @ update.T
        self._weight[:, here] = 0.0
        if self._outputs is not None:
            self._weight[self._outputs[group]] = 0.0
        by_group = update.reshape(self._groups, self._size, self._size)
        self._blocks -= by_group @ by_group.transpose(0, 2, 1)
        self._alive[group] = False
        self._blocks[~self._alive] = np.eye(self._size)
        self._updates = np.concatenate([self._updates, update], axis=1)
        if self._updates.shape[1] >= _FLUSH_COLUMNS:
            self._inverse -= self._updates @ self._updates.T
            self._updates = self._updates[:, :0]


def covariance_of(sums: Matrix) -> Matrix:
    """Return the inputs' covariance, [I, I], from the sum of x x^T with a constant 1 behind x: [I + 1, I + 1]."""
    count = max(sums[-1, -1], 1.0)  # none where no row asked anything of the layer
    means = sums[:-1, -1] / count
    second = sums[:-1, :-1] / count
    # Sums of float32 products: what is left of few rows after the means may be nothing but rounding, of any sign.
    rounding = _ROUNDING * np.trace(second) / len(second) * np.eye(len(second))
    covariance: Matrix = second - np.outer(means, means) + rounding
    return covariance


def sensitive(weight: Matrix, gradients: Matrix) -> Matrix:
    """Return V with V^T V = W^T G W, for G of any rank: [O, I]."""
    values, vectors = np.linalg.eigh(gradients)
    sensitive_weight: Matrix = np.sqrt(np.maximum(values, 0.0))[:, None] * (vectors.T @ weight)
    return sensitive_weight


def refit(cross: Matrix, moment: Matrix, prior: Matrix) -> Matrix:
    """Return A, [O, K], that makes |A x - y|^2 least, drawn a little to `prior` so that few data do no harm.

    `cross`: sum of y x^T, [O, K]; `moment`: sum of x x^T, [K, K].
    """
    strength = _RIDGE * np.trace(moment) / len(moment)
    damped = moment + strength * np.eye(len(moment))
    fitted: Matrix = np.linalg.solve(damped, (cross + strength * prior).T).T
    return fitted


def ridged(covariance: Matrix) -> Matrix:
    """Return the covariance with something on its diagonal, so that it has an inverse."""
    strength = _RIDGE * np.trace(covariance) / len(covariance) + _LEAST_VARIANCE
    damped: Matrix = covariance + strength * np.eye(len(covariance))
    return damped


def cheapest(
    eliminations: Sequence[Elimination], share: float, chunk: int, worths: Sequence[float]
) -> list[tuple[int, ...]]:
    """Return which groups of each layer go so that `share` of all go and the costs add up to little.

    Each time `chunk` groups of the layer go for which costs / worth is least.
    """
    taken = [0] * len(eliminations)
    chunks = [
        np.add.reduceat(one.costs, np.arange(0, len(one.costs), chunk)) / worth if one.costs else np.zeros(0)
        for one, worth in zip(eliminations, worths, strict=True)
    ]
    for _ in range(round(share * sum(map(len, chunks)))):
        layer = min(
            (one for one, done in enumerate(taken) if done < len(chunks[one])),
            key=lambda one: float(chunks[one][taken[one]]),
        )
        taken[layer] += 1
    return [elimination.order[: done * chunk] for elimination, done in zip(eliminations, taken, strict=True)]

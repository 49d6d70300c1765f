"""low_rank: matrices as products of two thinner ones, by a truncated singular value decomposition.

Shapes: O outputs, I inputs, r the rank, V words, E the size of a word's vector.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from maas_compression.materials import Materials
from maas_compression.recipe import LowRank
from maas_compression.techniques.graph_weights import drop_unread, graph_weights
from maas_compression.techniques.graphs import GraphUnusable, float_graph, write_graph_package
from maas_package.architectures import load_architecture
from maas_package.manifest import ArchitectureRef
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import load_module, package_trained_model

_RANKS = "ranks"
_EMBEDDING_SIZE = "embedding_size"
_LSTM = "lstm-text-classifier"
_CALIBRATION_TEXTS = 256
_CALIBRATION_ROWS = 16
_DAMPING = 1e-3


def apply_low_rank(source: Package, technique: LowRank, folder: Path, materials: Materials) -> Package:
    """Write the package whose matrices have the least rank that keeps `energy` to `folder`, new or empty.

    Only a matrix that then takes fewer weights is replaced: r (O + I) < O I. The trainable form stays where its
    configuration can say so: the linear layers of BERT's family, and the LSTM's words, whose vectors and input matrix
    are one product. A graph, and a network of another architecture, keeps its served form alone. Raises
    GraphUnusable when no matrix is replaced, GraphMissing.
    """
    reference = source.manifest.architecture
    if reference is not None and source.manifest.weights is not None:
        config = load_architecture(reference.name).parse_config(reference.config)
        if reference.name == _LSTM:
            return _shrink_embedding(source, reference, technique, folder)
        if _RANKS in config:
            return _factor_layers(source, reference, technique, folder, materials)
    model = low_rank_graph(float_graph(source), technique)
    return write_graph_package(source, model, folder, precision="fp32")


def low_rank_graph(model: onnx.ModelProto, technique: LowRank) -> onnx.ModelProto:
    """Return the graph with two MatMul in the place of each whose matrix can be factored; Gemm stays as it is."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {one.name: one.value for one in graph_weights(result) if one.fan_in_axes == (0,) and one.value.ndim == 2}
    nodes: list[onnx.NodeProto] = []
    replaced = 0
    for node in result.graph.node:
        factors = None
        if node.op_type == "MatMul" and node.input[1] in weights:
            factors = factor(weights[node.input[1]].T.astype(np.float64), technique.energy)
        if factors is None:
            nodes.append(node)
            continue
        replaced += 1
        second, first = factors
        between = f"{node.output[0]}_low_rank"
        names = [f"{node.name or node.output[0]}_{role}" for role in ("first", "second")]
        for name, matrix in zip(names, (first.T, second.T), strict=True):
            result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix, np.float32), name))
        nodes.append(helper.make_node("MatMul", [node.input[0], names[0]], [between], f"{names[0]}_matmul"))
        nodes.append(helper.make_node("MatMul", [between, names[1]], node.output, f"{names[1]}_matmul"))
    _check_replaced(replaced, technique)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unread(result)
    return result


def factor(
    matrix: NDArray[np.float64], energy: float, moments: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return A [O, r] and B [r, I] with A B near `matrix` [O, I], or None where that is no fewer weights.

    r is the least rank with at least `energy` of the squared singular values. With `moments`, the mean of x x^T over
    what the matrix is multiplied with, they are those of matrix * L, L L^T = moments: then `energy` is the share of the
    outputs' squares that stays, and what the data never asks for costs nothing (Wang et al., 2024, SVD-LLM,
    arXiv:2403.07378, section 3.1).
    """
    outputs, inputs = matrix.shape
    whitening = None
    if moments is not None:
        damped = moments + np.eye(inputs) * max(_DAMPING * float(np.trace(moments)) / inputs, 1e-12)
        whitening = np.linalg.cholesky(damped)
    left, singular, right = np.linalg.svd(matrix if whitening is None else matrix @ whitening, full_matrices=False)
    rank = rank_of_energy(singular, energy)
    if rank * (outputs + inputs) >= outputs * inputs:
        return None
    root = np.sqrt(singular[:rank])
    first = root[:, np.newaxis] * right[:rank]
    if whitening is not None:
        first = np.linalg.solve(whitening.T, first.T).T
    return left[:, :rank] * root, first


def rank_of_energy(singular: NDArray[np.float64], energy: float) -> int:
    """Return how many of the largest singular values hold that share of the sum of their squares; at least 1."""
    squares = np.cumsum(np.square(singular))
    return int(np.searchsorted(squares, energy * squares[-1] * (1 - 1e-12))) + 1


def _factor_layers(
    source: Package, reference: ArchitectureRef, technique: LowRank, folder: Path, materials: Materials
) -> Package:
    architecture = load_architecture(reference.name)
    config = architecture.parse_config(reference.config)
    module = load_module(source)
    moments = _moments(source, module, materials)
    state = module.state_dict()
    ranks: dict[str, int] = dict(config[_RANKS])
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    replaced = 0
    for index, (name, linear) in enumerate(linears):
        materials.progress(index / len(linears), name)
        factors = factor(linear.weight.detach().double().numpy(), technique.energy, moments.get(name))
        if factors is None or name.rpartition(".")[0] in ranks:
            continue
        replaced += 1
        second, first = factors
        ranks[name] = len(first)
        del state[f"{name}.weight"]
        state[f"{name}.0.weight"] = torch.from_numpy(first).float()
        state[f"{name}.1.weight"] = torch.from_numpy(second).float()
        if linear.bias is not None:
            state[f"{name}.1.bias"] = state.pop(f"{name}.bias")
    _check_replaced(replaced, technique)
    materials.log(f"low_rank: {replaced} of {len(linears)} matrices are two thinner ones")
    return _packaged(source, reference, config | {_RANKS: ranks}, state, folder)


def _moments(source: Package, module: nn.Module, materials: Materials) -> Mapping[str, NDArray[np.float64]]:
    """Return the mean of x x^T [I, I] over what each linear layer gets for some training texts; none without them."""
    text = source.manifest.text
    if materials.train is None or text is None:
        return {}
    tokenizer = TextTokenizer.from_file(source.path(text.tokenizer), text.max_tokens)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> object:
        def add(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            del layer
            rows = given[0].reshape(-1, given[0].shape[-1])
            sums[name] = sums.get(name, torch.zeros(())) + (rows.T @ rows).double()
            counts[name] = counts.get(name, 0) + len(rows)

        return add

    handles = [
        part.register_forward_pre_hook(watch(name))  # type: ignore[arg-type]
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        texts = materials.train.first_texts()[:_CALIBRATION_TEXTS]
        with torch.inference_mode():
            for begin in range(0, len(texts), _CALIBRATION_ROWS):
                module(torch.from_numpy(tokenizer.encode(texts[begin : begin + _CALIBRATION_ROWS])))
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).numpy() for name, total in sums.items()}


def _shrink_embedding(source: Package, reference: ArchitectureRef, technique: LowRank, folder: Path) -> Package:
    """Give words shorter vectors: the LSTM sees only their product with its input matrix, so both have its rank.

    The product of vectors [V, E] and matrix [4H, E]^T is projected onto its first r right singular vectors, which is
    its best approximation of rank r. A vector of zeros (padding) stays one. The state's own matrix cannot be factored:
    no engine's LSTM multiplies it in two steps.
    """
    architecture = load_architecture(reference.name)
    config = architecture.parse_config(reference.config)
    state = load_module(source).state_dict()
    words = state["embedding.weight"].double().numpy()
    inputs = state["lstm.weight_ih_l0"].double().numpy()
    # The product is V x 4H; its right singular vectors are those of R W^T, with words = Q R.
    reduced = np.linalg.qr(words, mode="r") @ inputs.T
    _, singular, right = np.linalg.svd(reduced, full_matrices=False)
    rank = rank_of_energy(singular, technique.energy)
    _check_replaced(int(rank < words.shape[1]), technique)
    state["embedding.weight"] = torch.from_numpy(words @ inputs.T @ right[:rank].T).float()
    state["lstm.weight_ih_l0"] = torch.from_numpy(np.ascontiguousarray(right[:rank].T)).float()
    return _packaged(source, reference, config | {_EMBEDDING_SIZE: rank}, state, folder)


def _packaged(
    source: Package, reference: ArchitectureRef, config: Mapping[str, object], state: Mapping[str, Tensor], folder: Path
) -> Package:
    text = source.manifest.text
    assert text is not None, "every architecture here takes word ids"
    architecture = load_architecture(reference.name)
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(config)
    module.load_state_dict(dict(state), strict=True)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module.eval(),
        tokenizer=TextTokenizer.from_file(source.path(text.tokenizer), text.max_tokens),
        labels=source.manifest.labels,
        task=source.manifest.task,
    )


def _check_replaced(replaced: int, technique: LowRank) -> None:
    if not replaced:
        raise GraphUnusable(
            f"no matrix takes fewer weights as two that keep {technique.energy:g} of its energy: ask for less energy, "
            "or leave low_rank out"
        )

"""Students, and what they begin with: parts of the teacher, or what it knows of single words.

Shapes: V words of a vocabulary, H hidden sizes, E embedding_size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maas_compression.recipe import Distill, RecipeInvalid
from maas_package.architectures import Architecture, load_architecture
from maas_package.architectures.bert import (
    CLASSIFIER,
    SENTENCE_ENCODER,
    BertConfig,
    BertEncoder,
    BertSentenceEncoderArchitecture,
    BertTextClassifierArchitecture,
)
from maas_package.architectures.lstm_text_classifier import PADDING_ID
from maas_package.manifest import JsonObject
from maas_package.text import TextTokenizer

_BERTS: dict[str, BertTextClassifierArchitecture | BertSentenceEncoderArchitecture] = {
    CLASSIFIER.name: CLASSIFIER,
    SENTENCE_ENCODER.name: SENTENCE_ENCODER,
}
_WORDS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Student:
    """A network that has not learned yet. `teacher_layers`: which of the teacher's layers each of its own began as."""

    architecture: Architecture
    config: JsonObject
    module: nn.Module
    teacher_layers: tuple[int, ...] = ()


def make_student(
    technique: Distill, name: str, config: Mapping[str, object], teacher: nn.Module, tokenizer: TextTokenizer
) -> Student:
    """Return the student that the technique asks for, of a teacher of architecture `name`. Raises RecipeInvalid."""
    wanted = technique.student or name
    if wanted == name and name in _BERTS:
        return _fewer_layers(technique, name, config, teacher)
    if wanted == "lstm-text-classifier" and name in (CLASSIFIER.name, wanted):
        return _lstm(technique, config, teacher, tokenizer)
    raise RecipeInvalid(f"distill cannot make a {wanted} of a {name}: leave student out, or take lstm-text-classifier")


def is_bert(name: str) -> bool:
    """Return whether an architecture has layers that hints can be given to."""
    return name in _BERTS


def _fewer_layers(technique: Distill, name: str, config: Mapping[str, object], teacher: nn.Module) -> Student:
    """Every k-th layer of the teacher, the last among them, with the strongest of its numbers where it is narrower."""
    architecture = _BERTS[name]
    parsed = architecture.parsed(config)
    layers = technique.layers or max(1, parsed.layers // 2)
    hidden_size = technique.hidden_size or parsed.hidden_size
    if layers > parsed.layers or hidden_size > parsed.hidden_size:
        raise RecipeInvalid(
            f"a student is not larger than its teacher, which has {parsed.layers} layers and states of "
            f"{parsed.hidden_size}"
        )
    if hidden_size < parsed.hidden_size and name == SENTENCE_ENCODER.name:
        raise RecipeInvalid(f"an encoder's vectors keep their {parsed.hidden_size} numbers: leave hidden_size out")
    kept = tuple((index + 1) * parsed.layers // layers - 1 for index in range(layers))
    inner_sizes = [min(technique.inner_size or parsed.inner_sizes[layer], parsed.inner_sizes[layer]) for layer in kept]
    heads = [parsed.heads_by_layer[layer] for layer in kept]
    if hidden_size < parsed.hidden_size:
        heads = [min(one, max(1, hidden_size // parsed.size_of_a_head)) for one in heads]
    student_config = architecture.parse_config(
        {
            **config,
            "layers": layers,
            "hidden_size": hidden_size,
            "inner_size": inner_sizes[0] if len(set(inner_sizes)) == 1 else inner_sizes,
            "heads": heads[0] if len(set(heads)) == 1 else heads,
            "head_size": parsed.size_of_a_head,
        }
    )
    module = architecture.build(student_config)
    module.load_state_dict(_narrowed(teacher.state_dict(), parsed, kept, hidden_size, inner_sizes, heads))
    return Student(load_architecture(name), student_config, module, kept)


def _narrowed(
    weights: Mapping[str, Tensor],
    config: BertConfig,
    layers: Sequence[int],
    hidden_size: int,
    inner_sizes: Sequence[int],
    heads: Sequence[int],
) -> dict[str, Tensor]:
    """Return the weights of these layers, cut to the states, channels and heads that weigh most."""
    states = _strongest(_state_strength(weights, layers), hidden_size)
    narrowed = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.layers.")}
    for index, layer in enumerate(layers):
        found, made = f"encoder.layers.{layer}.", f"encoder.layers.{index}."
        own = {name.removeprefix(found): tensor for name, tensor in weights.items() if name.startswith(found)}
        if inner_sizes[index]:
            strength = own["inner.weight"].norm(dim=1) * own["inner_output.weight"].norm(dim=0)
            channels = _strongest(strength, inner_sizes[index])
            own["inner.weight"] = own["inner.weight"][channels]
            own["inner.bias"] = own["inner.bias"][channels]
            own["inner_output.weight"] = own["inner_output.weight"][:, channels]
        if heads[index]:
            _keep_heads(own, config.heads_by_layer[layer], config.size_of_a_head, heads[index])
        narrowed.update({made + name: tensor for name, tensor in own.items()})
    if hidden_size < config.hidden_size:
        narrowed = {name: _of_states(name, tensor, states) for name, tensor in narrowed.items()}
    return {name: tensor.contiguous().clone() for name, tensor in narrowed.items()}


def _keep_heads(own: dict[str, Tensor], heads: int, head_size: int, kept: int) -> None:
    """Cut a layer's weights to the heads that add most to the states."""
    by_head = own["attention_output.weight"].view(-1, heads, head_size)
    chosen = _strongest(by_head.norm(dim=(0, 2)), kept)
    numbers = (chosen[:, None] * head_size + torch.arange(head_size)).flatten()
    own["attention_output.weight"] = own["attention_output.weight"][:, numbers]
    for name in ("query_key_value.weight", "query_key_value.bias"):
        tensor = own[name]
        own[name] = tensor.view(3, heads * head_size, *tensor.shape[1:])[:, numbers].flatten(0, 1)


_READS_STATES = ("query_key_value.weight", "inner.weight", "output.weight")
_WRITES_STATES = ("attention_output.weight", "inner_output.weight", "attention_output.bias", "inner_output.bias")


def _of_states(name: str, tensor: Tensor, states: Tensor) -> Tensor:
    """Return a weight cut to these numbers of the states, wherever it reads or writes them."""
    inside_layer = name.startswith("encoder.layers.")
    last = name.split(".", 3)[3] if inside_layer else name
    if last.startswith("pooler."):
        tensor = tensor[states]
        return tensor[:, states] if tensor.ndim == 2 else tensor
    if "norm." in last or last in _WRITES_STATES:
        return tensor[states]
    if last in _READS_STATES or last in ("encoder.word.weight", "encoder.position.weight"):
        return tensor[:, states]
    return tensor


def _state_strength(weights: Mapping[str, Tensor], layers: Sequence[int]) -> Tensor:
    """Return how much is read from each number of the states, by all matrices together: [H]."""
    names = [
        f"encoder.layers.{layer}.{name}" for layer in layers for name in ("query_key_value.weight", "inner.weight")
    ]
    return torch.stack([weights[name].square().sum(dim=0) for name in names if name in weights]).sum(dim=0)


def _strongest(strength: Tensor, kept: int) -> Tensor:
    """Return the indices of the largest, in their old order."""
    return strength.topk(kept).indices.sort().values


def _lstm(technique: Distill, config: Mapping[str, object], teacher: nn.Module, tokenizer: TextTokenizer) -> Student:
    """A fresh LSTM, whose word vectors hold what the teacher makes of each word alone.

    Measured on the example data (test split of 2,000; MiniLM fine-tuned 0.8665; distill(student=lstm-text-classifier,
    epochs=6), 100 s of one core): the LSTM trained alone 0.783, distilled 0.831 (13.7 MB), with int8 0.8305 (3.4 MB),
    with vocabulary and int8 0.829 (1.8 MB).
    """
    architecture = load_architecture("lstm-text-classifier")
    vectors = word_vectors(teacher, tokenizer)
    size = min(architecture.default_config["embedding_size"], vectors.shape[1])
    sizes: JsonObject = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "classes": config["classes"],
        "embedding_size": size,
    }
    if technique.hidden_size:
        sizes["hidden_size"] = technique.hidden_size
    student_config = architecture.parse_config({**sizes, "dropout": 0.3})
    module = architecture.build(student_config)
    embedding = module.get_submodule("embedding")
    assert isinstance(embedding, nn.Embedding)
    with torch.no_grad():
        embedding.weight.copy_(torch.from_numpy(principal_parts(vectors, size)))
        embedding.weight[PADDING_ID].zero_()
    return Student(architecture, student_config, module)


def word_vectors(teacher: nn.Module, tokenizer: TextTokenizer) -> NDArray[np.float32]:
    """Return what the teacher makes of each word of its tokenizer, alone between what opens and closes a text: [V, H].

    As Model2Vec does with sentence encoders (Tulkens and van Dongen, 2024). The words' own vectors, before any layer,
    know less: the layers above make of them what the task asks for.
    """
    embedding = getattr(teacher, "embedding", None)
    if isinstance(embedding, nn.Embedding):
        return embedding.weight.detach().numpy()
    encoder = teacher.get_submodule("encoder")
    assert isinstance(encoder, BertEncoder)
    frame = torch.from_numpy(tokenizer.encode(["a"]))[0]
    place = len(frame) // 2
    vectors = []
    with torch.inference_mode():
        for words in torch.split(torch.arange(tokenizer.vocabulary_size), _WORDS_AT_ONCE):
            tokens = frame.repeat(len(words), 1)
            tokens[:, place] = words
            states, _ = encoder(tokens)
            vectors.append(states[:, place].numpy())
    return np.concatenate(vectors)


def principal_parts(vectors: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return the vectors [V, H] in the `size` directions in which they differ most, as large as torch's own: [V, E]."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    kept = directions[:, ::-1][:, :size]
    parts: NDArray[np.float32] = (centred @ kept).astype(np.float32)
    return parts / max(float(parts.std()), 1e-12)

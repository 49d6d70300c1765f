"""BERT's encoder with a classifier or a sentence vector on top; BERT, DistilBERT and RoBERTa weights fit into it.

Shapes: N texts of a batch, T tokens, H hidden_size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maas_package.architectures import ArchitectureConfigInvalid
from maas_package.architectures.bert_graph import BertGraph
from maas_package.architectures.factored import factor_linears
from maas_package.manifest import JsonObject, TensorSpec

if TYPE_CHECKING:
    import onnx

INPUT = "input_ids"
GELU, GELU_TANH, RELU, TANH = "gelu", "gelu_tanh", "relu", "tanh"
MEAN, FIRST = "mean", "first"

_LEAST_LENGTH = 1e-12


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The sizes of the encoder, and the share that training drops. `padding_id` fills a row up and is never a word.

    `heads` and `inner_size` are one number for all layers, or one for each, which is what pruning leaves: 0 is a layer
    without attention, or without the wide part. `head_size` is hidden_size / heads where it is 0. `ranks`: the
    linear layers that are two thinner ones (factored.py), by their module's name.
    """

    vocabulary_size: int = 10_000
    hidden_size: int = 256
    layers: int = 4
    heads: int | tuple[int, ...] = 4
    inner_size: int | tuple[int, ...] = 1024
    positions: int = 512
    padding_id: int = 0
    activation: str = GELU
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    head_size: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def heads_by_layer(self) -> tuple[int, ...]:
        """How many heads each layer has."""
        return _by_layer(self.heads, self.layers)

    @property
    def inner_sizes(self) -> tuple[int, ...]:
        """How wide each layer's wide part is."""
        return _by_layer(self.inner_size, self.layers)

    @property
    def size_of_a_head(self) -> int:
        """How many numbers a head looks at."""
        return self.head_size or self.hidden_size // max(self.heads_by_layer)


@dataclass(frozen=True, slots=True)
class BertTextClassifierConfig(BertConfig):
    """`pooler`: what follows the dense layer on top: tanh (BERT, RoBERTa) or relu (DistilBERT).

    `pooling`: what that layer looks at: a row's first token, or the mean of its tokens, as most sentence encoders do.
    """

    classes: int = 2
    pooler: str = TANH
    pooling: str = FIRST


@dataclass(frozen=True, slots=True)
class BertSentenceEncoderConfig(BertConfig):
    """`pooling`: the mean of a row's tokens, or its first; `normalized`: the vector has length 1."""

    pooling: str = MEAN
    normalized: bool = True


class BertEncoder(nn.Module):
    """Word ids to one vector a token. Padding is not looked at, so it changes no answer.

    The token type's vector, which is the same for all words of a single text, is part of the position's.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.padding_id = config.padding_id
        self.word = nn.Embedding(config.vocabulary_size, config.hidden_size, padding_idx=config.padding_id)
        self.position = nn.Embedding(config.positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            BertLayer(config, heads, inner_size)
            for heads, inner_size in zip(config.heads_by_layer, config.inner_sizes, strict=True)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`tokens`: int64 [N, T]; returns the states float32 [N, T, H] and which tokens are words: bool [N, T]."""
        states, unseen, is_word = self.embedded(tokens)
        for layer in self.layers:
            states = layer(states, unseen)
        return states, is_word

    def embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the first layer takes, `states` and `unseen`, and which tokens are words: bool [N, T]."""
        is_word = tokens != self.padding_id
        embedded = self.word(tokens) + self.position.weight[: tokens.shape[1]]
        states = self.dropout(self.norm(embedded))
        # A large number rather than infinity: a row of nothing but padding has an answer too.
        unseen = torch.where(is_word, 0.0, torch.finfo(states.dtype).min / 2).to(states.dtype)[:, None, None, :]
        return states, unseen, is_word


class BertTextClassifier(nn.Module):
    """Word ids to logits."""

    def __init__(self, config: BertTextClassifierConfig) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        self.pooling = config.pooling
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = _ACTIVATIONS[config.pooler]()
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, config.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: int64 [N, T], right-padded; returns logits: float32 [N, C]."""
        states, is_word = self.encoder(tokens)
        pooled = _pooled(states, is_word, self.pooling)
        logits: Tensor = self.output(self.dropout(self.activation(self.pooler(pooled))))
        return logits


class BertSentenceEncoder(nn.Module):
    """Word ids to one vector a text."""

    def __init__(self, config: BertSentenceEncoderConfig) -> None:
        super().__init__()
        self.encoder = BertEncoder(config)
        self.pooling = config.pooling
        self.normalized = config.normalized

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens`: int64 [N, T], right-padded; returns vectors: float32 [N, H]."""
        states, is_word = self.encoder(tokens)
        vectors = _pooled(states, is_word, self.pooling)
        return functional.normalize(vectors, dim=-1, eps=_LEAST_LENGTH) if self.normalized else vectors


class BertLayer(nn.Module):
    """Attention, then a wide part; each is left out where it has no heads or no width.

    What is left out would add its output's bias, a constant, to the norm before it: pruning adds it there.
    """

    def __init__(self, config: BertConfig, heads: int, inner_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = config.size_of_a_head
        self.inner_size = inner_size
        self.drop = config.dropout
        if heads:
            attended_size = heads * self.head_size
            self.query_key_value = nn.Linear(config.hidden_size, 3 * attended_size)
            self.attention_output = nn.Linear(attended_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        if inner_size:
            self.inner = nn.Linear(config.hidden_size, inner_size)
            self.activation = _ACTIVATIONS[config.activation]()
            self.inner_output = nn.Linear(inner_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, unseen: Tensor) -> Tensor:
        """`states`: float32 [N, T, H]; `unseen`: float32 [N, 1, 1, T], a large negative number at padding."""
        states = self.attention_norm(self.add_attention(states, unseen))
        normed: Tensor = self.output_norm(self.add_wide_part(states))
        return normed

    def add_attention(self, states: Tensor, unseen: Tensor) -> Tensor:
        """Return the states plus what the heads make of them: float32 [N, T, H]."""
        if not self.heads:
            return states
        total: Tensor = states + self.dropout(self.attention_output(self.attended(states, unseen)))
        return total

    def attended(self, states: Tensor, unseen: Tensor) -> Tensor:
        """Return what the heads see, one behind the other: float32 [N, T, heads * head_size]."""
        rows, tokens, _ = states.shape
        split = self.query_key_value(states).view(rows, tokens, 3, self.heads, self.head_size)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=unseen, dropout_p=self.drop if self.training else 0.0
        )
        return attended.transpose(1, 2).reshape(rows, tokens, self.heads * self.head_size)

    def add_wide_part(self, states: Tensor) -> Tensor:
        """Return the states plus what the channels make of them: float32 [N, T, H]."""
        if not self.inner_size:
            return states
        total: Tensor = states + self.dropout(self.inner_output(self.widened(states)))
        return total

    def widened(self, states: Tensor) -> Tensor:
        """Return the channels: float32 [N, T, inner_size]."""
        channels: Tensor = self.activation(self.inner(states))
        return channels


Config = TypeVar("Config", bound=BertConfig)


class _BertArchitecture(Generic[Config]):
    """What the two architectures share: how they are configured and what goes in."""

    name: ClassVar[str]
    config_type: type[Config]

    @property
    def default_config(self) -> JsonObject:
        """Small enough to be trained from nothing; weights from elsewhere bring their own sizes."""
        return _to_json(self.config_type())

    def parse_config(self, config: Mapping[str, object]) -> JsonObject:
        """Return the whole configuration, defaults filled in. Raises ArchitectureConfigInvalid."""
        return _to_json(self.parsed(config))

    def parsed(self, config: Mapping[str, object]) -> Config:
        """Return the configuration as a value. Raises ArchitectureConfigInvalid."""
        return _parse(self.name, self.config_type, config)

    def inputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """One tensor of word ids."""
        self.parsed(config)
        return (TensorSpec(INPUT, "INT64", (-1, -1)),)

    def example_inputs(self, config: Mapping[str, object], rows: int, seed: int) -> dict[str, Tensor]:
        """Return random word ids [rows, 4 to 40]; all but the first row end in padding."""
        parsed = self.parsed(config)
        generator = torch.Generator().manual_seed(seed)
        time = min(int(torch.randint(4, 41, (1,), generator=generator)), parsed.positions)
        tokens = torch.randint(0, parsed.vocabulary_size - 1, (rows, time), generator=generator)
        tokens += tokens >= parsed.padding_id
        lengths = torch.randint(1, time + 1, (rows, 1), generator=generator)
        lengths[0] = time
        return {INPUT: torch.where(torch.arange(time) < lengths, tokens, parsed.padding_id)}


class BertTextClassifierArchitecture(_BertArchitecture[BertTextClassifierConfig]):
    """How BertTextClassifier is configured and built."""

    name = "bert-text-classifier"
    config_type = BertTextClassifierConfig

    def build(self, config: Mapping[str, object]) -> nn.Module:
        """Return a fresh module; torch's global generator decides its weights."""
        parsed = self.parsed(config)
        return _initialized(BertTextClassifier(parsed), parsed)

    def outputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """One tensor of logits."""
        return (TensorSpec("logits", "FP32", (-1, self.parsed(config).classes)),)

    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto:
        """Write the graph by hand: torch's exporter computes padding too, and the last layer for all words."""
        assert isinstance(module, BertTextClassifier)
        parsed = self.parsed(config)
        graph = BertGraph(module.encoder, parsed)
        states = graph.encode(INPUT, first_only=parsed.pooling == FIRST)
        pooled = states if parsed.pooling == FIRST else graph.mean(states)
        dense = graph.activated(graph.linear(pooled, module.pooler, "pooler"), parsed.pooler, "activation")
        graph.rename_last(graph.linear(dense, module.output, "output"), "logits")
        return graph.finish(self.name, INPUT, "logits", parsed.classes)


class BertSentenceEncoderArchitecture(_BertArchitecture[BertSentenceEncoderConfig]):
    """How BertSentenceEncoder is configured and built."""

    name = "bert-sentence-encoder"
    config_type = BertSentenceEncoderConfig

    def build(self, config: Mapping[str, object]) -> nn.Module:
        """Return a fresh module; torch's global generator decides its weights."""
        parsed = self.parsed(config)
        return _initialized(BertSentenceEncoder(parsed), parsed)

    def outputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        """One vector a text."""
        return (TensorSpec("sentence_embedding", "FP32", (-1, self.parsed(config).hidden_size)),)

    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto:
        """Write the graph by hand: torch's exporter computes padding too, and the last layer for all words."""
        assert isinstance(module, BertSentenceEncoder)
        parsed = self.parsed(config)
        graph = BertGraph(module.encoder, parsed)
        states = graph.encode(INPUT, first_only=parsed.pooling == FIRST)
        vectors = states if parsed.pooling == FIRST else graph.mean(states)
        if parsed.normalized:
            vectors = graph.normalized(vectors, _LEAST_LENGTH)
        graph.rename_last(vectors, "sentence_embedding")
        return graph.finish(self.name, INPUT, "sentence_embedding", parsed.hidden_size)


CLASSIFIER = BertTextClassifierArchitecture()
SENTENCE_ENCODER = BertSentenceEncoderArchitecture()

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    GELU: nn.GELU,
    GELU_TANH: lambda: nn.GELU(approximate="tanh"),
    RELU: nn.ReLU,
    TANH: nn.Tanh,
}
_SIZES = {
    "vocabulary_size": (2, 1_000_000),
    "hidden_size": (1, 8192),
    "layers": (1, 96),
    "heads": (1, 256),
    "inner_size": (1, 65_536),
    "head_size": (0, 8192),
    "positions": (1, 32_768),
    "padding_id": (0, 999_999),
    "classes": (2, 10_000),
}
_SIZES_BY_LAYER = ("heads", "inner_size")
_CHOICES = {"activation": (GELU, GELU_TANH, RELU), "pooler": (TANH, RELU), "pooling": (MEAN, FIRST)}


def _pooled(states: Tensor, is_word: Tensor, pooling: str) -> Tensor:
    """`states`: float32 [N, T, H]; `is_word`: bool [N, T]; returns one vector a text: float32 [N, H]."""
    if pooling == FIRST:
        return states[:, 0]
    weights = is_word.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _initialized(module: nn.Module, config: BertConfig) -> nn.Module:
    """Return the module with small weights, as BERT starts; torch's own embeddings are fifty times as large."""
    factor_linears(module, config.ranks)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
    return module


def _by_layer(size: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return (size,) * layers if isinstance(size, int) else size


def _to_json(config: BertConfig) -> JsonObject:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _parse(name: str, config_type: type[Config], config: Mapping[str, object]) -> Config:
    known = {field.name for field in fields(config_type)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ArchitectureConfigInvalid(f"{name} has no setting {', '.join(unknown)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    parsed = config_type(**given)  # type: ignore[arg-type]  # checked right below
    for setting in sorted(known):
        value = getattr(parsed, setting)
        if setting in _SIZES_BY_LAYER and isinstance(value, tuple):
            _check_sizes_by_layer(setting, value, parsed.layers)
        elif setting in _SIZES:
            least, most = _SIZES[setting]
            if type(value) is not int or not least <= value <= most:
                raise ArchitectureConfigInvalid(f"{setting} is a whole number from {least} to {most}, not {value!r}")
        elif setting in _CHOICES and value not in _CHOICES[setting]:
            raise ArchitectureConfigInvalid(f"{setting} is one of {', '.join(_CHOICES[setting])}, not {value!r}")
        elif setting == "normalized" and not isinstance(value, bool):
            raise ArchitectureConfigInvalid(f"normalized is true or false, not {value!r}")
        elif setting in ("dropout", "norm_epsilon") and (type(value) not in (int, float) or not 0 <= value < 1):
            raise ArchitectureConfigInvalid(f"{setting} is at least 0 and less than 1, not {value!r}")
    if not isinstance(parsed.ranks, Mapping):
        raise ArchitectureConfigInvalid(f"ranks is an object of names and numbers, not {parsed.ranks!r}")
    _check_heads(parsed)
    if parsed.padding_id >= parsed.vocabulary_size:
        raise ArchitectureConfigInvalid(f"padding_id is less than vocabulary_size, not {parsed.padding_id}")
    return parsed


def _check_sizes_by_layer(setting: str, sizes: tuple[object, ...], layers: object) -> None:
    """Each is a size, or 0 for a layer without that part."""
    _, most = _SIZES[setting]
    if len(sizes) != layers:
        raise ArchitectureConfigInvalid(f"{setting} has a number for each of the {layers} layers, not {len(sizes)}")
    wrong = [size for size in sizes if type(size) is not int or not 0 <= size <= most]
    if wrong:
        raise ArchitectureConfigInvalid(f"{setting} of a layer is a whole number from 0 to {most}, not {wrong[0]!r}")


def _check_heads(config: BertConfig) -> None:
    if config.head_size:
        return
    if not isinstance(config.heads, int):
        raise ArchitectureConfigInvalid("heads has a number for each layer, so head_size has to say how large one is")
    if config.hidden_size % config.heads:
        raise ArchitectureConfigInvalid(
            f"hidden_size is a multiple of heads, and {config.hidden_size} is none of {config.heads}"
        )

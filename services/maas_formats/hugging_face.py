"""A Hugging Face folder made into a package: config.json, safetensors and tokenizer.json of BERT's family.

Nothing of the folder but these files is read, and no code of it or for it: the network is this project's own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_engine.publish import Log, publish_servables
from maas_formats.json_files import read_json
from maas_formats.kinds import refuse_harm
from maas_package.architectures import load_architecture
from maas_package.manifest import TENSORS, TEXT_CLASSIFICATION, JsonObject, check_path
from maas_package.package import Package
from maas_package.safetensors_header import read_safetensors_header
from maas_package.text import TextTokenizer
from maas_runtime.failures import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.json"

_CLASSIFIER = "bert-text-classifier"
_SENTENCE_ENCODER = "bert-sentence-encoder"
_DEFAULT_MAX_TOKENS = 256
_MOST_JSON_BYTES = 32 * 1024 * 1024
# Names of the folder's weights that this project's networks have no use for.
_LEFT_OUT = re.compile(r"(.*\.)?position_ids$|pooler\.|cls\.|lm_head\.|vocab_(transform|layer_norm|projector)\.")


class HuggingFaceFolderInvalid(InvalidInput):
    """A file of the folder is missing or broken, or does not fit the others."""

    reason = "HUGGING_FACE_FOLDER_INVALID"


class HuggingFaceModelUnsupported(InvalidInput):
    """The folder's model is none of those that this project has a network for."""

    reason = "HUGGING_FACE_MODEL_UNSUPPORTED"


def import_hugging_face(
    source: Path, folder: Path, *, max_tokens: int | None = None, labels: tuple[str, ...] = (), log: Log
) -> Package:
    """Make a package of the folder `source` in `folder`, which must be new or empty.

    A sequence classifier becomes a text classifier; an encoder gives one vector a text, pooled as the folder says.
    `max_tokens` and `labels` stand for the folder's own. The ONNX form is made from the weights and compared with
    them, as after training. Raises an InvalidInput that says what to do.
    """
    from maas_package.trainable import package_trained_model

    read = _read(source, log)
    network, given, task = _network(read, log)
    config = load_architecture(network).parse_config(given)
    tokenizer = _tokenizer(source, config, max_tokens or _max_tokens(source, config))
    module = _module(network, config, read)
    package = package_trained_model(
        folder,
        architecture=load_architecture(network),
        config=config,
        module=module,
        tokenizer=tokenizer,
        labels=_labels(read.config, labels) if task == TEXT_CLASSIFICATION else (),
        task=task,
    )
    return publish_servables(package, log=log)


@dataclass(frozen=True, slots=True)
class _Family:
    """How one family of models names its settings and weights."""

    prefix: str
    settings: Mapping[str, str]
    """Ours -> theirs."""
    layers: str
    layer: Mapping[str, tuple[str, ...]]
    """Ours -> theirs, within a layer; several of theirs are one after the other in ours."""
    pooler: str
    pooler_activation: str
    output: str
    first_position: bool = False
    """Positions begin after the padding's id, as RoBERTa's do."""


_BERT_SETTINGS = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner_size": "intermediate_size",
    "positions": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
    "norm_epsilon": "layer_norm_eps",
    "activation": "hidden_act",
}
_BERT_LAYER = {
    "query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "inner": ("intermediate.dense",),
    "inner_output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
_BERT = _Family("bert.", _BERT_SETTINGS, "encoder.layer", _BERT_LAYER, "pooler.dense", "tanh", "classifier")
_ROBERTA = _Family(
    "roberta.",
    _BERT_SETTINGS,
    "encoder.layer",
    _BERT_LAYER,
    "classifier.dense",
    "tanh",
    "classifier.out_proj",
    first_position=True,
)
_DISTILBERT = _Family(
    "distilbert.",
    {
        "vocabulary_size": "vocab_size",
        "hidden_size": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "inner_size": "hidden_dim",
        "positions": "max_position_embeddings",
        "dropout": "dropout",
        "activation": "activation",
    },
    "transformer.layer",
    {
        "query_key_value": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention_output": ("attention.out_lin",),
        "attention_norm": ("sa_layer_norm",),
        "inner": ("ffn.lin1",),
        "inner_output": ("ffn.lin2",),
        "output_norm": ("output_layer_norm",),
    },
    "pre_classifier",
    "relu",
    "classifier",
)
_FAMILIES = {"bert": _BERT, "distilbert": _DISTILBERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# What a folder's heads are called, and what is done with the encoder under them.
_HEADS = {
    "ForSequenceClassification": _CLASSIFIER,
    "Model": _SENTENCE_ENCODER,
    "ForMaskedLM": _SENTENCE_ENCODER,
    "ForPreTraining": _SENTENCE_ENCODER,
}


@dataclass(frozen=True, slots=True)
class _Folder:
    """What was read of a folder."""

    path: Path
    family: _Family
    config: JsonObject
    tensors: dict[str, "Tensor"]


def _read(source: Path, log: Log) -> _Folder:
    config = _json(source, CONFIG_NAME)
    kind = config.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} says model_type {kind!r}, and there is a network here for {', '.join(_FAMILIES)}; "
            "write the model as ONNX and import that file"
        )
    if "auto_map" in config:
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} names code of its own (auto_map), which is never run; write the model as ONNX and import "
            "that file"
        )
    for left_out in sorted(one.name for one in source.iterdir() if one.suffix in (".bin", ".pt", ".pth", ".h5")):
        log(f"{left_out} is not read: model.safetensors has the weights")
    tensors: dict[str, Tensor] = {}
    for location in _weight_files(source):
        tensors |= _load(location)
    return _Folder(source, family, config, tensors)


def _weight_files(source: Path) -> Iterator[Path]:
    """Yield the files of weights, of which there are several in a large model."""
    if (source / WEIGHTS_NAME).is_file():
        yield source / WEIGHTS_NAME
        return
    if not (source / INDEX_NAME).is_file():
        raise HuggingFaceFolderInvalid(f"{source.name} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")
    shards = _json(source, INDEX_NAME).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise HuggingFaceFolderInvalid(f"{INDEX_NAME} has no weight_map of names and files")
    for name in sorted(set(shards.values())):
        location = source / check_path(name, INDEX_NAME)
        if not location.is_file():
            raise HuggingFaceFolderInvalid(
                f"{INDEX_NAME} names {name}, which is not there; copy all files of the model"
            )
        yield location


def _load(location: Path) -> dict[str, "Tensor"]:
    """Return a file's numbers as float32. Raises as read_safetensors_header and refuse_harm do."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if location.suffix != ".safetensors":
        refuse_harm(location, location.name)
    try:
        read_safetensors_header(location)
    except InvalidInput:
        refuse_harm(location, location.name)
        raise
    try:
        tensors: dict[str, Tensor] = load_file(location)
    except SafetensorError as error:
        raise HuggingFaceFolderInvalid(f"{location.name} cannot be read: {error}") from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _network(read: _Folder, log: Log) -> tuple[str, JsonObject, str]:
    """Return the architecture, its configuration, and the task."""
    named = read.config.get("architectures") or []
    head = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    network = next((network for ending, network in _HEADS.items() if head.endswith(ending)), None)
    if network is None:
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} says architectures {named}, and there are a sequence classifier and an encoder here "
            f"({', '.join(_HEADS)}); write the model as ONNX and import that file"
        )
    config = _settings(read)
    if network == _SENTENCE_ENCODER:
        return network, config | _pooling(read.path, log), TENSORS
    problem = read.config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} says problem_type {problem!r}, and a classifier here has one answer a text; write the "
            "model as ONNX and import that file without labels"
        )
    output = read.tensors.get(f"{read.family.output}.weight")
    if output is None:
        raise HuggingFaceFolderInvalid(f"the weights have no {read.family.output}.weight, which a classifier has")
    return network, config | {"classes": output.shape[0], "pooler": read.family.pooler_activation}, TEXT_CLASSIFICATION


def _settings(read: _Folder) -> JsonObject:
    config = read.config
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} asks for relative positions or a decoder; write the model as ONNX and import that file"
        )
    settings = {ours: config[theirs] for ours, theirs in read.family.settings.items() if theirs in config}
    missing = sorted(
        theirs
        for ours, theirs in read.family.settings.items()
        if ours not in settings and ours not in ("activation", "dropout", "norm_epsilon")
    )
    if missing:
        raise HuggingFaceFolderInvalid(f"{CONFIG_NAME} does not say {', '.join(missing)}")
    activation = settings.get("activation", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise HuggingFaceModelUnsupported(
            f"{CONFIG_NAME} asks for the activation {activation!r}; there are {', '.join(_ACTIVATIONS)}"
        )
    padding_id = config.get("pad_token_id")
    if padding_id is None:
        padding_id = 1 if read.family.first_position else 0
    settings |= {"activation": _ACTIVATIONS[activation], "padding_id": padding_id}
    if read.family.first_position and type(settings["positions"]) is int and type(padding_id) is int:
        settings["positions"] -= padding_id + 1
    return settings


def _pooling(source: Path, log: Log) -> JsonObject:
    """Return how vectors of tokens become one of a text, as sentence-transformers writes it down."""
    if not (source / "modules.json").is_file():
        log("modules.json is not there: the vector of a text is the mean of its tokens' vectors, not normalized")
        return {"pooling": "mean", "normalized": False}
    modules = _json(source, "modules.json", list)
    types = [str(one.get("type", "")).rpartition(".")[2] for one in modules if isinstance(one, dict)]
    if types not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise HuggingFaceModelUnsupported(
            f"modules.json has {', '.join(types)}, and there are Transformer, Pooling and Normalize here; write the "
            "model as ONNX and import that file"
        )
    path = check_path(str(modules[1].get("path", "")), "modules.json")
    modes = {
        name.removeprefix("pooling_mode_")
        for name, value in _json(source, f"{path}/config.json").items()
        if name.startswith("pooling_mode_") and value is True
    }
    pooling = {"mean_tokens": "mean", "cls_token": "first"}.get("".join(modes)) if len(modes) == 1 else None
    if pooling is None:
        raise HuggingFaceModelUnsupported(
            f"{path}/config.json pools by {', '.join(sorted(modes)) or 'nothing'}, and there are mean_tokens and "
            "cls_token here; write the model as ONNX and import that file"
        )
    return {"pooling": pooling, "normalized": types[-1] == "Normalize"}


def _module(network: str, config: JsonObject, read: _Folder) -> Any:
    """Return this project's network with the folder's weights."""
    import torch

    from maas_package.trainable import WeightsInvalid

    weights = _renamed(network, config, read)
    architecture = load_architecture(network)
    # On the meta device first: a configuration that the weights do not fill must not cost its memory.
    with torch.device("meta"):
        expected = architecture.build(config).state_dict()
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise WeightsInvalid(
                f"{CONFIG_NAME} does not fit the weights: {name} is {list(weights[name].shape)} instead of "
                f"{list(tensor.shape)}"
            )
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(config)
    module.load_state_dict(weights, strict=True)
    return module.eval()


def _renamed(network: str, config: JsonObject, read: _Folder) -> dict[str, "Tensor"]:
    """Return the folder's weights under this project's names; every one is used, or known to be of no use here."""
    import torch

    family = read.family
    # Older files call a norm's weight and bias gamma and beta.
    theirs = {
        name.removeprefix(family.prefix).replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in read.tensors.items()
    }
    used: set[str] = set()

    def take(name: str) -> "Tensor":
        if name not in theirs:
            raise HuggingFaceFolderInvalid(f"the weights have no {name}; copy all files of the model")
        used.add(name)
        return theirs[name]

    positions = take("embeddings.position_embeddings.weight")
    if family.first_position:
        positions = positions[config["padding_id"] + 1 :]
    if "embeddings.token_type_embeddings.weight" in theirs:
        positions = positions + take("embeddings.token_type_embeddings.weight")[0]
    ours = {"encoder.word.weight": take("embeddings.word_embeddings.weight"), "encoder.position.weight": positions}
    parts: dict[str, tuple[str, ...]] = {"encoder.norm": ("embeddings.LayerNorm",)}
    for layer in range(config["layers"]):
        for our, names in family.layer.items():
            parts[f"encoder.layers.{layer}.{our}"] = tuple(f"{family.layers}.{layer}.{name}" for name in names)
    if network == _CLASSIFIER:
        parts |= {"pooler": (family.pooler,), "output": (family.output,)}
    for our, names in parts.items():
        for kind in ("weight", "bias"):
            ours[f"{our}.{kind}"] = torch.cat([take(f"{name}.{kind}") for name in names])
    unknown = sorted(name for name in set(theirs) - used if not _LEFT_OUT.match(name))
    if unknown:
        raise HuggingFaceModelUnsupported(
            f"the weights have {unknown[0]}, which this project's network does not; write the model as ONNX and import "
            "that file"
        )
    return ours


def _tokenizer(source: Path, config: JsonObject, max_tokens: int) -> TextTokenizer:
    if not (source / TOKENIZER_NAME).is_file():
        raise HuggingFaceFolderInvalid(
            f"{source.name} has no {TOKENIZER_NAME}; write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    tokenizer = TextTokenizer.from_file(source / TOKENIZER_NAME, max_tokens)
    if tokenizer.vocabulary_size > config["vocabulary_size"]:
        raise HuggingFaceFolderInvalid(
            f"{TOKENIZER_NAME} has {tokenizer.vocabulary_size} words and the network {config['vocabulary_size']}"
        )
    if tokenizer.padding_id != config["padding_id"]:
        raise HuggingFaceFolderInvalid(
            f"{TOKENIZER_NAME} fills rows up with {tokenizer.padding_id} and {CONFIG_NAME} says {config['padding_id']}"
        )
    if max_tokens > config["positions"]:
        raise HuggingFaceFolderInvalid(f"the network looks at {config['positions']} tokens, not at {max_tokens}")
    return tokenizer


def _max_tokens(source: Path, config: JsonObject) -> int:
    """Return how many tokens of a text are kept: what sentence-transformers says, or 256 where the network can."""
    found: Any = None
    if (source / "sentence_bert_config.json").is_file():
        found = _json(source, "sentence_bert_config.json").get("max_seq_length")
    wanted = found if type(found) is int and found > 0 else _DEFAULT_MAX_TOKENS
    positions: int = config["positions"]
    return min(wanted, positions)


def _labels(config: JsonObject, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names: those that were asked for, or the folder's; none where it only has numbers."""
    if wanted:
        return wanted
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))}:
        return ()
    names = tuple(str(named[str(index)]) for index in range(len(named)))
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def _json(source: Path, name: str, expected: type[Any] = dict) -> Any:
    return read_json(source, name, expected, _MOST_JSON_BYTES, HuggingFaceFolderInvalid)

"""vocabulary: drops the words that the data does not use, from the tokenizer and from the table of their vectors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer

from maas_compression.materials import Materials
from maas_compression.recipe import Vocabulary
from maas_compression.techniques.graphs import float_graph, save_graph
from maas_engine.engine import choose_servable
from maas_package.architectures import load_architecture
from maas_package.manifest import Servable, TextInput
from maas_package.package import Package, write_package
from maas_package.text import PADDING_TOKENS, UNKNOWN_TOKEN, TextEmpty, TextTokenizer
from maas_package.trainable import ONNX_PATH, load_module, package_trained_model
from maas_runtime.failures import InvalidInput

_KINDS = ("WordPiece", "WordLevel")
_PADDING_ID = "padding_id"
_VOCABULARY_SIZE = "vocabulary_size"
# What hands word ids on as they are, or some of them.
_PASSING = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})
_CHOOSING = frozenset({"Gather", "Slice"})


class VocabularyFixed(InvalidInput):
    """No word can be dropped from this version: how its tokenizer or its network uses them is not known here."""

    reason = "VOCABULARY_FIXED"


def apply_vocabulary(source: Package, technique: Vocabulary, folder: Path, materials: Materials) -> Package:
    """Write the package that knows the used words alone to `folder`, which must be new or empty.

    A text of words that stay gives the same answer to the bit. Special tokens stay, and single characters (at the
    beginning of a word and within it), so that a WordPiece tokenizer cuts a dropped word into smaller pieces; with
    one of whole words it becomes the unknown word. Keeps the trainable form where there is one. Raises
    TrainingDataMissing, VocabularyFixed, GraphMissing or GraphUnusable.
    """
    text = source.manifest.text
    if text is None:
        raise VocabularyFixed("this version takes no texts, so it has no words that could be dropped")
    tokenizer = TextTokenizer.from_file(source.path(text.tokenizer), text.max_tokens)
    definition = json.loads(source.path(text.tokenizer).read_bytes())
    kept = kept_ids(definition, count_ids(tokenizer, _texts(materials)), technique)
    materials.log(f"vocabulary: {len(kept):,} of {tokenizer.vocabulary_size:,} words stay")
    smaller = TextTokenizer(reduced_tokenizer(definition, kept), text.max_tokens)
    if source.manifest.architecture is not None and source.manifest.weights is not None:
        return _write_trainable(source, smaller, kept, folder)
    return _write_graph(source, text, smaller, kept, folder)


def count_ids(tokenizer: TextTokenizer, texts: Iterator[str]) -> NDArray[np.int64]:
    """Return how often each id comes up in the texts, as far as the model reads them."""
    counts = np.zeros(tokenizer.vocabulary_size, np.int64)
    for text in texts:
        with suppress(TextEmpty):
            counts += np.bincount(tokenizer.encode([text])[0], minlength=len(counts))
    return counts


def kept_ids(definition: Mapping[str, Any], counts: NDArray[np.int64], technique: Vocabulary) -> NDArray[np.int64]:
    """Return the ids that stay, ascending. Raises VocabularyFixed for a tokenizer that joins pieces by rules (BPE)."""
    model = definition["model"]
    if model.get("type") not in _KINDS:
        raise VocabularyFixed(
            f"words can be dropped from tokenizers of the kinds {' and '.join(_KINDS)}, not {model.get('type')}: its "
            "pieces depend on one another"
        )
    always = {token["id"] for token in definition.get("added_tokens", [])}
    special = {*PADDING_TOKENS, UNKNOWN_TOKEN, model.get("unk_token")}
    prefix = model.get("continuing_subword_prefix") or ""
    for word, number in model["vocab"].items():
        is_character = model["type"] == "WordPiece" and len(word.removeprefix(prefix)) == 1
        if word in special or is_character:
            always.add(number)
    stays = counts >= technique.minimum_count
    stays[sorted(always)] = True
    if technique.most_words and stays.sum() > technique.most_words:
        room = max(technique.most_words - len(always), 0)
        # The most frequent first; of equals, the earlier, which in most vocabularies is the more frequent elsewhere.
        ranked = [number for number in np.argsort(-counts, kind="stable") if number not in always and stays[number]]
        stays[ranked[room:]] = False
    return np.flatnonzero(stays)


def reduced_tokenizer(definition: Mapping[str, Any], kept: NDArray[np.int64]) -> Tokenizer:
    """Return the tokenizer that knows the ids `kept` alone, which are counted anew from 0 in the same order.

    WordPiece takes the longest piece that fits; so where that one stays, it is taken as before. Raises
    VocabularyFixed when the tokenizer cannot be written so.
    """
    new_id = {int(old): new for new, old in enumerate(kept)}
    vocabulary = {word: new_id[number] for word, number in definition["model"]["vocab"].items() if number in new_id}
    added = [{**token, "id": new_id[token["id"]]} for token in definition.get("added_tokens", [])]
    reduced = {
        **definition,
        "model": {**definition["model"], "vocab": vocabulary},
        "added_tokens": added,
        "padding": None,  # TextTokenizer pads
        "post_processor": _renumbered(definition.get("post_processor"), new_id),
    }
    tokenizer = Tokenizer.from_str(json.dumps(reduced))
    expected = vocabulary | {token["content"]: token["id"] for token in added}
    if tokenizer.get_vocab(with_added_tokens=True) != expected:
        raise VocabularyFixed("the tokenizer numbers its words by a rule of its own, so none can be dropped")
    return tokenizer


def _texts(materials: Materials) -> Iterator[str]:
    yield from materials.require_train().texts()
    if materials.unlabelled is not None:
        yield from materials.unlabelled.texts()


def _renumbered(processor: Any, new_id: Mapping[int, int]) -> Any:
    """Return what puts special tokens around a text, with their new ids: TemplateProcessing or BertProcessing."""
    match processor:
        case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
            changed = {
                name: {**token, "ids": [new_id[number] for number in token["ids"]]} for name, token in tokens.items()
            }
            return {**processor, "special_tokens": changed}
        case {"sep": [sep, int(sep_id)], "cls": [cls, int(cls_id)]}:
            return {**processor, "sep": [sep, new_id[sep_id]], "cls": [cls, new_id[cls_id]]}
        case {"type": "Sequence", "processors": list(inner)}:
            return {**processor, "processors": [_renumbered(one, new_id) for one in inner]}
    return processor


def _write_trainable(source: Package, tokenizer: TextTokenizer, kept: NDArray[np.int64], folder: Path) -> Package:
    reference = source.manifest.architecture
    assert reference is not None
    architecture = load_architecture(reference.name)
    config = architecture.parse_config(reference.config)
    if _VOCABULARY_SIZE not in config:
        raise VocabularyFixed(f"the architecture {reference.name} has no {_VOCABULARY_SIZE}, which would shrink")
    smaller = config | {_VOCABULARY_SIZE: len(kept)}
    if _PADDING_ID in config:
        smaller[_PADDING_ID] = int(np.searchsorted(kept, config[_PADDING_ID]))
    before = load_module(source).state_dict()
    with torch.random.fork_rng(devices=[]):
        module = architecture.build(smaller)
    rows = torch.from_numpy(kept)
    state = {
        name: before[name] if before[name].shape == tensor.shape else before[name][rows]
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state, strict=True)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=smaller,
        module=module.eval(),
        tokenizer=tokenizer,
        labels=source.manifest.labels,
        task=source.manifest.task,
    )


def _write_graph(
    source: Package, text: TextInput, tokenizer: TextTokenizer, kept: NDArray[np.int64], folder: Path
) -> Package:
    model = float_graph(source)
    take_rows(model, text.feeds, kept)
    target = folder.joinpath(*ONNX_PATH.split("/"))
    target.parent.mkdir(parents=True)
    save_graph(model, target)
    tokenizer_path = folder.joinpath(*text.tokenizer.split("/"))
    tokenizer_path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(tokenizer_path)
    servable = Servable("onnxruntime", choose_servable(source, "onnxruntime").precision, ONNX_PATH)
    return write_package(folder, replace(source.manifest, servables=(servable,), files=()))


def take_rows(model: onnx.ModelProto, feeds: str, kept: NDArray[np.int64]) -> None:
    """Leave only the rows `kept` in the tables that the input `feeds` looks up, in place.

    Raises VocabularyFixed when the graph does anything else with word ids than to look them up and to compare them
    with ids that keep their number (padding).
    """
    graph = model.graph
    ids, tables = {feeds}, set[str]()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        read = [name for name in node.input if name in ids]
        if not read:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if node.op_type in _PASSING or (node.op_type in _CHOOSING and read == [node.input[0]]):
            ids.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in ids and node.input[0] in constants and axis == 0:
            tables.add(node.input[0])
        elif node.op_type == "Equal":
            _check_compared(node, ids, constants, kept)
        elif node.op_type != "Shape":
            raise VocabularyFixed(f"the graph uses word ids in {node.op_type}, and may mean their numbers")
    tables_found = [constants[name] for name in sorted(tables)]
    if not tables_found or any(tensor.dims[0] <= kept[-1] for tensor in tables_found):
        raise VocabularyFixed("the graph has no table of word vectors that could be shortened")
    for tensor in tables_found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[kept], tensor.name))


def _check_compared(
    node: onnx.NodeProto, ids: set[str], constants: Mapping[str, onnx.TensorProto], kept: NDArray[np.int64]
) -> None:
    other = next((name for name in node.input if name not in ids), "")
    numbers: list[int] = numpy_helper.to_array(constants[other]).ravel().tolist() if other in constants else []
    if not numbers or not all(0 <= number < len(kept) and kept[number] == number for number in numbers):
        raise VocabularyFixed("the graph compares word ids with numbers that would mean other words")

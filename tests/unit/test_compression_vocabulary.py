"""vocabulary: texts of kept words are answered to the bit as before, others still have an answer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from compression_graphs import FLOATS, SMALL_BERT, SMALL_LSTM, small_package
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.recipe import Vocabulary
from maas_compression.techniques.vocabulary import VocabularyFixed, apply_vocabulary, kept_ids, reduced_tokenizer
from maas_engine.predictor import open_predictor
from maas_jobs.labelled_rows import open_labelled_split
from maas_package.architectures import load_architecture
from maas_package.package import Package, read_package, write_package
from maas_package.text import TextTokenizer
from maas_package.trainable import load_module, package_trained_model

TRAIN = ["w1 w2 w3", "w2 w3 w40", "w3 w190 w7"]
USED = ["w1", "w2", "w3", "w7", "w40", "w190"]

PIECES = ["[PAD]", "unused", "[UNK]", "[CLS]", "[SEP]", "zebra", "good", "##ly", "film", "go", "##od", "bad", "bab",
          "##dab", *"abdefgilmorzy", *(f"##{character}" for character in "abdefgilmorzy")]  # fmt: skip


def materials(folder: Path, texts: Sequence[str]) -> Materials:
    path = folder / "train.parquet"
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts), "label": [0, 1] + [0] * (len(texts) - 2)}), path)
    return Materials(folder, train=open_labelled_split(path))


def answers(package: Package, texts: Sequence[str]) -> FLOATS:
    predictor = open_predictor(package, package.manifest.servables[0])
    try:
        result: FLOATS = predictor.predict_texts(texts).outputs["logits"]
        return result
    finally:
        predictor.close()


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("lstm") / "package", "lstm-text-classifier", SMALL_LSTM)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Package:
    architecture = load_architecture("bert-text-classifier")
    # More rows than the tokenizer has words, as many models from elsewhere.
    config = architecture.parse_config({**SMALL_BERT, "layers": 1, "vocabulary_size": 48})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = architecture.build(config).eval()
    return package_trained_model(
        tmp_path_factory.mktemp("bert") / "package",
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=TextTokenizer(word_piece(), max_tokens=20),
        labels=("negative", "positive"),
    )


def without_trainable_form(package: Package, folder: Path) -> Package:
    """The same served graph, as it would be imported."""
    for path in (package.manifest.servables[0].path, "tokenizer.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(package.path(path).read_bytes())
    return write_package(folder, replace(package.manifest, architecture=None, weights=None, files=()))


@pytest.mark.parametrize("trainable", [True, False])
def test_texts_of_kept_words_get_the_same_answers_to_the_bit(lstm: Package, tmp_path: Path, trainable: bool) -> None:
    source = lstm if trainable else without_trainable_form(lstm, tmp_path / "bare")
    made = apply_vocabulary(source, Vocabulary(), tmp_path / "out", materials(tmp_path / "data", TRAIN))
    assert read_package(tmp_path / "out") == made
    texts = [*TRAIN, "w190", "w40 w7 w1 w1", "unknown w3"]
    np.testing.assert_array_equal(answers(made, texts), answers(source, texts))
    assert made.servable_bytes(made.manifest.servables[0]) < 0.7 * source.servable_bytes(source.manifest.servables[0])
    vocabulary = json.loads(made.path("tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary) == sorted([*USED, "[PAD]", "[UNK]"])
    if trainable:
        assert load_module(made).state_dict()["embedding.weight"].shape == (len(USED) + 2, 12)


def test_a_dropped_word_is_the_unknown_one(lstm: Package, tmp_path: Path) -> None:
    made = apply_vocabulary(lstm, Vocabulary(), tmp_path / "out", materials(tmp_path / "data", TRAIN))
    np.testing.assert_array_equal(answers(made, ["w1 w150"]), answers(lstm, ["w1 never"]))


@pytest.mark.parametrize("trainable", [True, False])
def test_a_transformer_s_pieces_stay_the_same(bert: Package, tmp_path: Path, trainable: bool) -> None:
    source = bert if trainable else without_trainable_form(bert, tmp_path / "bare")
    train = ["good film", "bad bad film", "goodly"]
    made = apply_vocabulary(source, Vocabulary(), tmp_path / "out", materials(tmp_path / "data", train))
    texts = [*train, "bad", "film film goodly badly", "d e a", "unknown"]
    np.testing.assert_array_equal(answers(made, texts), answers(source, texts))
    words = json.loads(made.path("tokenizer.json").read_text())["model"]["vocab"]
    assert not {"zebra", "unused", "bab", "##dab", "go", "##od"} & set(words)
    tokenizer = TextTokenizer.from_file(made.path("tokenizer.json"), 20)
    names = {number: word for word, number in words.items()}
    pieces = [names[number] for number in tokenizer.encode(["zebra bab"])[0]]
    assert pieces == ["[CLS]", "z", "##e", "##b", "##r", "##a", "b", "##a", "##b", "[SEP]"]


def test_rare_words_go_and_a_bound_keeps_the_most_frequent(lstm: Package) -> None:
    definition = json.loads(lstm.path("tokenizer.json").read_text())
    counts = np.zeros(200, np.int64)
    counts[[5, 9, 30, 60, 61]] = [3, 1, 7, 2, 2]

    def kept(technique: Vocabulary) -> list[int]:
        return kept_ids(definition, counts, technique).tolist()

    assert kept(Vocabulary()) == [0, 1, 5, 9, 30, 60, 61]
    assert kept(Vocabulary(minimum_count=2)) == [0, 1, 5, 30, 60, 61]
    assert kept(Vocabulary(most_words=5)) == [0, 1, 5, 30, 60]
    assert kept(Vocabulary(most_words=1)) == [0, 1], "what every text needs stays"


def test_random_texts_of_kept_pieces_are_cut_as_before() -> None:
    definition = json.loads(word_piece().to_str())
    generator = np.random.default_rng(0)
    characters = [*"abzdre", "good", "ly", "film", "zebra", "dab", " ", " "]
    full = word_piece()
    for _ in range(50):
        counts = generator.integers(0, 2, len(PIECES))
        kept = kept_ids(definition, counts, Vocabulary())
        smaller = reduced_tokenizer(definition, kept)
        for _ in range(20):
            text = "".join(generator.choice(characters, 12))
            before, after = full.encode(text), smaller.encode(text)
            if set(before.ids) <= set(kept.tolist()):
                assert after.tokens == before.tokens
                assert kept[after.ids].tolist() == before.ids
            assert "[UNK]" not in after.tokens


def test_words_of_pieces_that_depend_on_one_another_are_refused() -> None:
    definition = json.loads(Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
    with pytest.raises(VocabularyFixed, match="BPE"):
        kept_ids(definition, np.ones(3, np.int64), Vocabulary())


def test_without_texts_to_count_it_is_refused(lstm: Package, tmp_path: Path) -> None:
    with pytest.raises(TrainingDataMissing):
        apply_vocabulary(lstm, Vocabulary(), tmp_path / "out", Materials(tmp_path))

"""Makes tests/data/hugging_face/: tiny folders of each family, and what transformers answers for them."""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

TEXTS = ["a fine film", "Dull, and far too long; not a film to see twice!", "unwatchable", "film " * 40]
PIECES = [
    "a",
    "fine",
    "film",
    "dull",
    "and",
    "far",
    "too",
    "long",
    "not",
    "to",
    "see",
    "twice",
    "un",
    "##watch",
    "##able",
    ",",
    ";",
    "!",
]


def word_pieces() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_pairs() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("f", "i"), ("l", "m"), ("fi", "lm"), ("Ġ", "film")]
    tokens = [*special, *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


def write(folder: Path, model: torch.nn.Module, tokenizer: Tokenizer, padding: str, most: int, **saving: str) -> None:
    model.eval()
    # Fresh weights are so small that answers hardly differ.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder, **saving)
    tokenizer.save(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=padding)
    encoded = fast(TEXTS, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        answer = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    if hasattr(answer, "logits"):
        numbers = answer.logits
    else:
        mask = encoded["attention_mask"].unsqueeze(-1)
        numbers = (answer.last_hidden_state * mask).sum(1) / mask.sum(1)
    expected = {
        "transformers": transformers.__version__,
        "max_tokens": most,
        "texts": TEXTS,
        "input_ids": encoded["input_ids"].tolist(),
        "answers": [[round(number, 6) for number in row] for row in numbers.tolist()],
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def main(target: Path) -> None:
    torch.manual_seed(11)
    labels = {
        "id2label": {0: "negative", 1: "neutral", 2: "positive"},
        "label2id": {"negative": 0, "neutral": 1, "positive": 2},
    }
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    bert = {"vocab_size": 22, "max_position_embeddings": 20, **sizes}
    write(
        target / "bert-classifier",
        BertForSequenceClassification(BertConfig(**bert, **labels)),
        word_pieces(),
        "[PAD]",
        16,
    )
    write(
        target / "bert-encoder",
        BertModel(BertConfig(**bert, hidden_act="gelu_new")),
        word_pieces(),
        "[PAD]",
        16,
        max_shard_size="4KB",
    )
    distilbert = DistilBertConfig(
        vocab_size=22, max_position_embeddings=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12, **labels
    )
    write(target / "distilbert-classifier", DistilBertForSequenceClassification(distilbert), word_pieces(), "[PAD]", 16)
    pairs = byte_pairs()
    roberta = RobertaConfig(
        vocab_size=pairs.get_vocab_size(),
        max_position_embeddings=22,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        **sizes,
        **labels,
    )
    write(target / "roberta-classifier", RobertaForSequenceClassification(roberta), pairs, "<pad>", 20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

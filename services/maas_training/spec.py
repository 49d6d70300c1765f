"""What a training job is asked to do."""

from dataclasses import asdict, dataclass, replace
from typing import Self

from maas.names import DatasetVersionName, ModelName, VersionName
from maas_jobs.job import JsonObject

DEFAULT_ARCHITECTURE = "lstm-text-classifier"
CLASSIFIER_OF_ENCODER = {"bert-sentence-encoder": "bert-text-classifier"}
"""What an encoder becomes when it is trained to tell classes apart."""
TRANSFORMERS = ("bert-text-classifier",)
PACKAGE_FOLDER = "package"
"""Where in a job's folder the trained package lies."""
SOURCE_FOLDER = "source"
"""Where in a job's folder the package lies that training goes on from."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How to train: Adam on cross-entropy, early stopping on the accuracy of the split `validation`.

    With `warm_up`, a share of the steps, the step size rises to `learning_rate` and falls to 0 after that.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3
    dropout: float = 0.5
    patience: int = 3
    seed: int = 0
    warm_up: float = 0.0


def default_hyperparameters(architecture: str, *, has_source: bool) -> Hyperparameters:
    """Return how an architecture is trained when nobody says how: from nothing, or from a version's weights.

    The LSTM's step size and batch size were chosen on the example data's split `validation`: 3e-3 with 64 rows a step
    gave 0.78 after 10 epochs, 2e-3 with 128 rows 0.76, 1e-3 with 64 rows 0.74. A transformer's are usual: it diverges
    with the LSTM's.
    """
    if architecture in TRANSFORMERS:
        default = Hyperparameters(batch_size=32, learning_rate=3e-4, dropout=0.1, warm_up=0.1)
        return replace(default, epochs=3, learning_rate=1e-4) if has_source else default
    default = Hyperparameters()
    return replace(default, epochs=3, learning_rate=1e-3, warm_up=0.1) if has_source else default


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """One training run: the model that gets the version, the data, the network, and how to train it.

    With a `source_version` it goes on from the weights of that one.
    """

    model: ModelName
    dataset_version: DatasetVersionName
    architecture: str = DEFAULT_ARCHITECTURE
    hyperparameters: Hyperparameters = Hyperparameters()
    source_version: VersionName | None = None

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {
            "model": str(self.model),
            "dataset_version": str(self.dataset_version),
            "architecture": self.architecture,
            "hyperparameters": asdict(self.hyperparameters),
            "source_version": str(self.source_version) if self.source_version else "",
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        return cls(
            ModelName.parse(value["model"]),
            DatasetVersionName.parse(value["dataset_version"]),
            value["architecture"],
            Hyperparameters(**value["hyperparameters"]),
            VersionName.parse(value["source_version"]) if value["source_version"] else None,
        )

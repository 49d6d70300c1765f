"""What a training job is asked to do, and how it is stored."""

from maas_training.spec import TrainingSpec


def test_a_specs_stored_form_gives_the_same_spec_back() -> None:
    value = {
        "model": "models/reviews",
        "dataset_version": "datasets/reviews/versions/2",
        "architecture": "lstm-text-classifier",
        "hyperparameters": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.01,
            "dropout": 0.1,
            "patience": 2,
            "seed": 9,
        },
    }
    assert TrainingSpec.from_json(value).to_json() == value

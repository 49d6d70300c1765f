"""What a training job is asked to do, and how it is stored."""

from maas_training.spec import TrainingSpec, default_hyperparameters


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
            "warm_up": 0.2,
        },
        "source_version": "models/minilm/versions/4",
    }
    assert TrainingSpec.from_json(value).to_json() == value


def test_what_goes_on_from_weights_takes_smaller_and_fewer_steps() -> None:
    for architecture in ("lstm-text-classifier", "bert-text-classifier"):
        anew = default_hyperparameters(architecture, has_source=False)
        fine_tuned = default_hyperparameters(architecture, has_source=True)
        assert fine_tuned.learning_rate < anew.learning_rate
        assert fine_tuned.epochs < anew.epochs
        assert fine_tuned.warm_up > 0

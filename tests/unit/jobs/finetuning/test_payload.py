"""The payload of a fine-tuning job."""

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.finetuning.payload import EarlyStopping, FineTuning, Hyperparameters, Training, Validation

ASKED: dict[str, Any] = {"model": "tiny", "base": "tiny", "result": "ft:tiny:p::1", "seed": 7}


def test_a_stored_payload_leaves_out_defaults_and_reads_back_the_same() -> None:
    payload = FineTuning(**ASKED, training=Training(rank=8), hyperparameters=Hyperparameters(n_epochs=2))

    stored = payload.to_payload()

    assert stored == {**ASKED, "training": {"rank": 8}, "hyperparameters": {"n_epochs": 2}}
    assert FineTuning.model_validate(stored) == payload


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Hyperparameters, {"n_epochs": 0}),
        (Hyperparameters, {"n_epochs": 51}),
        (Hyperparameters, {"batch_size": 257}),
        (Hyperparameters, {"learning_rate_multiplier": 0}),
        (Hyperparameters, {"learning_rate_multiplier": float("nan")}),
        (Hyperparameters, {"learning_rate_multiplier": float("inf")}),
        (Hyperparameters, {"beta": 2.1}),
        (Training, {"rank": 0}),
        (Training, {"target_modules": []}),
        (Validation, {"type": "holdout", "fraction": 1}),
        (EarlyStopping, {"patience": 0}),
    ],
)
def test_values_out_of_range_are_refused(model: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(values)


@pytest.mark.parametrize(
    "asked",
    [
        {"validation": {"type": "holdout"}, "validation_file": "file-1"},
        {"validation": {"type": "file"}},
    ],
)
def test_validation_file_must_match_validation_type(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="validation_file"):
        FineTuning.model_validate(ASKED | asked)

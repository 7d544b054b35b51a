"""The result of a dry run over a batch file."""

from typing import Literal

from pydantic import BaseModel

from api.batches.schemas import BatchErrors


class TokenEstimate(BaseModel):
    """No tokenizer was asked: a quarter of the bytes."""

    input_tokens: int
    method: Literal["bytes/4"] = "bytes/4"


class BatchValidation(BaseModel):
    """`errors` are those that the batch would fail with, or one of its lines for its `context`. `eta_seconds` is null
    until this model's pace is known."""

    object: Literal["batch.validation"] = "batch.validation"
    valid: bool
    endpoint: str
    input_file_id: str
    model: str | None
    bytes: int
    requests: int
    inputs: int
    errors: BatchErrors
    errors_truncated: bool
    estimate: TokenEstimate
    eta_seconds: float | None

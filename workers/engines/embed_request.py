"""POST /v1/embeddings on the wire: what may be asked, and how the vectors are written."""

import base64
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from workers.engines.port import Answer, Usage, refusal

MOST_INPUTS: Final = 2048  # OpenAI's limits
MOST_TOKENS: Final = 300_000
DIGITS: Final = 9  # more than a float32 near 1 has

Texts = list[str]
Tokens = list[list[int]]


class Unacceptable(Exception):
    """The request breaks a rule; `answer` says which."""

    def __init__(self, message: str, *, param: str = "input", code: str | None = None) -> None:
        super().__init__(message)
        self.answer = refusal(400, message, param=param, code=code)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is well formed. `inputs` are all texts or all token ids."""

    inputs: Texts | Tokens
    base64: bool
    dimensions: int


def read(body: dict[str, Any], dimensions: int, vocabulary: int) -> Asked:
    """Check a body against OpenAI's rules and a model's size. Raises Unacceptable."""
    encoding = body.get("encoding_format", "float")
    if encoding not in {"float", "base64"}:
        raise Unacceptable("encoding_format must be 'float' or 'base64'.", param="encoding_format")
    return Asked(_inputs(body.get("input"), vocabulary), encoding == "base64", _dimensions(body, dimensions))


def _dimensions(body: dict[str, Any], most: int) -> int:
    wanted = body.get("dimensions")
    if wanted is None:
        return most
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= most:
        raise Unacceptable(f"dimensions must be an integer from 1 to {most}.", param="dimensions")
    return wanted


def _inputs(value: Any, vocabulary: int) -> Texts | Tokens:
    match value:
        case str():
            many: list[Any] = [value]
        case [int(), *_]:
            many = [value]
        case [_, *_]:
            many = value
        case _:
            raise Unacceptable("input must be a non-empty string or array.")
    if len(many) > MOST_INPUTS:
        raise Unacceptable(f"input must have at most {MOST_INPUTS} items; it has {len(many)}.")
    if all(isinstance(item, str) for item in many):
        return _texts(many)
    if all(isinstance(item, list) for item in many):
        return _tokens(many, vocabulary)
    raise Unacceptable("input must be a string, or an array of strings, of token ids, or of arrays of token ids.")


def _texts(many: list[str]) -> Texts:
    if "" in many:
        raise Unacceptable("input cannot be an empty string.")
    return many


def _tokens(many: list[list[Any]], vocabulary: int) -> Tokens:
    for ids in many:
        if not ids:
            raise Unacceptable("input cannot be an empty array.")
        if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
            raise Unacceptable(f"token ids of this model are integers from 0 to {vocabulary - 1}.")
    return many


def check_lengths(lengths: list[int], longest: int) -> None:
    """Raises Unacceptable for inputs beyond the context, one by one or together."""
    most = max(lengths)
    if most > longest:
        message = (
            f"This model's maximum context length is {longest} tokens, however you requested {most} tokens "
            f"(input {lengths.index(most)}). Please reduce your input."
        )
        raise Unacceptable(message, code="context_length_exceeded")
    if sum(lengths) > MOST_TOKENS:
        raise Unacceptable(f"input must have at most {MOST_TOKENS} tokens in all; it has {sum(lengths)}.")


def write(asked: Asked, model: str, vectors: list[Any], lengths: tuple[int, ...]) -> Answer:
    """OpenAI's answer. `vectors` are numpy's float32 rows of length 1."""
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(asked, vector)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(lengths)
    body = {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(200, msgspec.json.encode(body), Usage(tokens), lengths)


def _shown(asked: Asked, vector: Any) -> Any:
    if asked.dimensions < len(vector):
        vector = vector[: asked.dimensions]
        vector = vector / max(float(vector @ vector) ** 0.5, 1e-12)
    if asked.base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.astype("f8").round(DIGITS).tolist()

"""Embed in this process, on sentence-transformers, and read and write the bodies of POST /v1/embeddings.

`workers.engines.encoders.batching` computes the inputs of many requests together. Importing this module does not import
torch; `EmbedEngine.start` does.

Beside OpenAI's fields a request may have `input_type` (`jobs.requests.embedding_prompts`), and `truncate` or, as vLLM
has it, `truncate_prompt_tokens`. Without these an input that is too long is an error; with them its beginning is
embedded, and the answer's `truncated` has its index.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from jobs.fleet.models_file import EngineKind
from jobs.requests.embedding_prompts import Prompts
from jobs.requests.endpoints import BERTSCORE, EMBEDDINGS
from workers.engines.encoders import bertscore
from workers.engines.encoders.batching import MAX_TOKEN_LENGTH, BatchingEngine, Unacceptable
from workers.engines.encoders.embed_model import SentenceModel
from workers.engines.encoders.embed_runtime import Choices, Chooser
from workers.engines.encoders.encoder_pool import TOKEN_CHARACTERS, EncoderTask, TaskSlice
from workers.engines.foreign_errors import translate_errors
from workers.engines.port import Answer, EngineFault, Request, Usage

MAX_INPUTS: Final = 2048  # OpenAI's limits
MAX_TOKENS: Final = 300_000
DIGITS: Final = 9  # more than a float32 near 1 has

Texts = list[str]
Tokens = list[list[int]]


class EmbedModelFacts(Protocol):
    """The properties of a model that bound its requests. Lengths include special tokens."""

    dimensions: int
    vocabulary: int
    longest: int
    prompts: Prompts

    def min_tokens(self, prompt: str) -> int: ...


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """A valid request. `inputs` are all texts with the prompt before them, or all token ids without it.

    Inputs with more than `max_tokens` tokens are cut off there; 0: refused. `cut` has the inputs whose end was dropped
    unread.
    """

    inputs: Texts | Tokens
    base64: bool
    dimensions: int
    prompt: str = ""
    max_tokens: int = 0
    cut: frozenset[int] = frozenset()


def read(body: dict[str, Any], model: EmbedModelFacts) -> EmbedInput:
    """Check a body against OpenAI's rules and a model's size. Raises Unacceptable."""
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):  # it may be unhashable
        raise Unacceptable("encoding_format must be 'float' or 'base64'.", param="encoding_format")
    inputs, prompt = _inputs(body.get("input"), model.vocabulary), prompt_of(body, model.prompts)
    dimensions, max_tokens = _dimensions(body, model.dimensions), _max_tokens_of(body, model, prompt)
    inputs, cut = _cut_texts(add_prompt(inputs, prompt), model.longest, max_tokens)
    return EmbedInput(inputs, encoding == "base64", dimensions, prompt, max_tokens, cut)


def prompt_of(body: dict[str, Any], prompts: Prompts) -> str:
    """Return the prompt that is put before the inputs. Raises Unacceptable."""
    kind = body.get("input_type")
    prompt = prompts.of(kind) if isinstance(kind, str | None) else None
    if prompt is None:
        raise Unacceptable(f"input_type must be one of {', '.join(prompts.types)}.", param="input_type")
    return prompt


def add_prompt(inputs: Any, prompt: str) -> Any:
    """Return texts with the prompt before each; token ids as they are."""
    if not prompt:
        return inputs
    return [prompt + item if isinstance(item, str) else item for item in inputs]


def _cut_texts(inputs: Any, longest: int, max_tokens: int) -> tuple[Any, frozenset[int]]:
    """Return the texts without the end that is beyond any model's length, and the indexes of those that were cut.

    Raises Unacceptable where the request does not allow a cut.
    """
    room = longest * MAX_TOKEN_LENGTH
    over = frozenset(n for n, text in enumerate(inputs) if isinstance(text, str) and len(text) > room)
    if not over:
        return inputs, over
    if not max_tokens:
        message = (
            f"This model's maximum context length is {longest} tokens, and of {room} characters; input {min(over)} has "
            f"{len(inputs[min(over)])}. Please reduce your input."
        )
        raise Unacceptable(message, code="context_length_exceeded")
    return [text[:room] if n in over else text for n, text in enumerate(inputs)], over


def _max_tokens_of(body: dict[str, Any], model: EmbedModelFacts, prompt: str) -> int:
    truncate, tokens = body.get("truncate"), body.get("truncate_prompt_tokens")
    if not isinstance(truncate, bool | None):
        raise Unacceptable("truncate must be true or false.", param="truncate")
    if tokens is None or truncate is False:
        return model.longest if truncate else 0
    least, integer = model.min_tokens(prompt), isinstance(tokens, int) and not isinstance(tokens, bool)
    if not integer or not (tokens == -1 or least <= tokens <= model.longest):
        message = f"truncate_prompt_tokens must be -1 or an integer from {least} to {model.longest}."
        raise Unacceptable(message, param="truncate_prompt_tokens")
    return model.longest if tokens == -1 else int(tokens)


def _dimensions(body: dict[str, Any], maximum: int) -> int:
    dimensions = body.get("dimensions")
    if dimensions is None:
        return maximum
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= maximum:
        raise Unacceptable(f"dimensions must be an integer from 1 to {maximum}.", param="dimensions")
    return dimensions


def inputs_of(value: Any) -> list[Any] | None:
    """Return one input or many as a list; None where there is none."""
    match value:
        case str() | [int(), *_]:
            return [value]
        case [_, *_]:
            return list(value)
        case _:
            return None


def _inputs(value: Any, vocabulary: int) -> Texts | Tokens:
    many = inputs_of(value)
    if many is None:
        raise Unacceptable("input must be a non-empty string or array.")
    if len(many) > MAX_INPUTS:
        raise Unacceptable(f"input must have at most {MAX_INPUTS} items; it has {len(many)}.")
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
    """Raise Unacceptable for inputs that have no tokens, or are beyond the context, one by one or together."""
    if 0 in lengths:
        raise Unacceptable(f"input cannot be empty; the model's tokenizer makes nothing of input {lengths.index(0)}.")
    maximum = max(lengths)
    if maximum > longest:
        message = (
            f"This model's maximum context length is {longest} tokens, however you requested {maximum} tokens "
            f"(input {lengths.index(maximum)}). Please reduce your input."
        )
        raise Unacceptable(message, code="context_length_exceeded")
    if sum(lengths) > MAX_TOKENS:
        raise Unacceptable(f"input must have at most {MAX_TOKENS} tokens in all; it has at least {sum(lengths)}.")


def write(
    request: EmbedInput, model: str, vectors: list[Any], lengths: tuple[int, ...], truncated: list[int]
) -> Answer:
    """Return OpenAI's answer, with the indexes of inputs that were cut off. `vectors` are numpy's rows of length 1."""
    data = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(request, vector)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(lengths)
    body: dict[str, Any] = {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if request.max_tokens:
        body["truncated"] = truncated
    return Answer(200, msgspec.json.encode(body), Usage(tokens), lengths)


def _encode_vector(request: EmbedInput, vector: Any) -> Any:
    if request.dimensions < len(vector):
        vector = vector[: request.dimensions]
        vector = vector / max(float(vector @ vector) ** 0.5, 1e-12)
    if request.base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.astype("f8").round(DIGITS).tolist()


# The engine.


class EmbedEngine(BatchingEngine[SentenceModel]):
    """The engine of one embedding model.

    `source` is a folder or a hub's name, or a function that returns it, called in the worker thread at the start.
    `records` has the recorded choices of a runtime; without it the arguments alone decide.
    """

    url = EMBEDDINGS
    kind = EngineKind.EMBED

    def __init__(
        self,
        source: str | Callable[[], str],
        names: Sequence[str],
        *,
        revision: str | None = None,
        args: Mapping[str, Any] | None = None,
        records: Choices | None = None,
    ) -> None:
        super().__init__(source, names, revision=revision, args=args)
        self._chooser = Chooser(self._names[0], records)

    async def answer(self, request: Request) -> Answer:
        if request.url != BERTSCORE or request.body.get("model") not in self._names:
            return await super().answer(request)
        if self._model is None:
            await self.start()
        try:
            with translate_errors(lambda error: EngineFault(f"The forward pass failed: {error}"), Unacceptable):
                texts = bertscore.read(request.body)
                return await self._run_work(bertscore.answer, self._model, self._names[0], *texts)
        except Unacceptable as wrong:
            return wrong.answer

    def _load(self, source: str) -> SentenceModel:
        return self._chooser.load(source, self._revision, self._args)

    def _closing(self) -> None:
        self._chooser.close()

    def _read(self, model: SentenceModel, body: Mapping[str, Any]) -> tuple[EmbedInput, Sequence[int]]:
        request = read(dict(body), model)
        return request, [
            len(item) if isinstance(item, str) else len(item) * TOKEN_CHARACTERS for item in request.inputs
        ]

    def _tokenise(self, model: SentenceModel, slices: Sequence[TaskSlice]) -> list[list[Any]]:
        return _tokenise(model, slices)

    def _fit(self, model: SentenceModel, job: EncoderTask, inputs: list[Any]) -> list[Any]:
        if max_tokens := job.request.max_tokens:
            before = len(job.lengths)
            cut = job.request.cut
            job.truncated += [n for n, ids in enumerate(inputs, before) if len(ids) > max_tokens or n in cut]
            inputs = [model.cut(ids, max_tokens) for ids in inputs]
        check_lengths([*job.lengths, *map(len, inputs)], model.longest)
        return inputs

    def _forward(self, model: SentenceModel, batch: list[Any]) -> Any:
        return model.embed(batch)

    def _write(self, job: EncoderTask) -> Answer:
        return write(job.request, self._names[0], job.results, tuple(job.lengths), job.truncated)


def _tokenise(model: SentenceModel, slices: Sequence[TaskSlice]) -> list[list[Any]]:
    """Tokenise all texts of all slices in one call: the tokenizer runs them in parallel."""
    inputs = [(part.job.request, part.job.request.inputs[part.first : part.last]) for part in slices]
    texts = [item for _, some in inputs for item in some if isinstance(item, str)]
    ids = iter(model.tokens_of(texts) if texts else [])
    return [
        [next(ids) if isinstance(item, str) else model.frame(item, request.prompt) for item in some]
        for request, some in inputs
    ]

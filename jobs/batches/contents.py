"""Check what is in the lines of a batch file: the JSON schemas, and the lengths of the prompts.

    response_format, text.format   a schema of the answer      ── jsonschema ──▶ invalid_json_schema
    tools, functions               a schema of the arguments   ── jsonschema ──▶ invalid_function_parameters
    messages, input, prompt        texts ── tokenizer ──▶ more tokens than the context ──▶ context_length_exceeded

Both take a processor as long as a client likes, so that each has `CPU_SECONDS` for a whole file. What comes after that
is not checked. A chat template adds tokens that are not counted here: a prompt that is named is too long for certain.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import msgspec

from jobs.batches.lines import Bad
from jobs.errors import InvalidRequest
from jobs.requests.answer_schemas import MAX_SCHEMA_BYTES, invalid, schema_of
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES

CPU_SECONDS: Final = 15.0
_WITH_SCHEMAS: Final[Mapping[str, tuple[str, ...]]] = {
    CHAT: ("response_format", "tools", "functions"),
    RESPONSES: ("text", "tools"),
}
#: The field of a prompt, and what says that a prompt that is too long is cut.
_PROMPTS: Final[Mapping[str, str]] = {CHAT: "messages", RESPONSES: "input", COMPLETIONS: "prompt"}
_CUTS: Final = frozenset({"context", "truncation", "truncate_prompt_tokens"})
_SLICE: Final = 1 << 16  # characters that are tokenised together

Body = Mapping[str, msgspec.Raw]


class LineBudget:
    """Processor time for one kind of check, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    @property
    def is_spent(self) -> bool:
        return self._left <= 0

    @contextmanager
    def spending(self) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self._left -= time.process_time() - began


class Contents:
    """The checks of one file. `contexts` has the tokens of each model's context, and the file of its tokenizer."""

    def __init__(self, endpoint: str, contexts: Mapping[str, tuple[int, str]], seconds: float = CPU_SECONDS) -> None:
        self._endpoint, self._contexts = endpoint, contexts
        self._schemas, self._lengths = LineBudget(seconds), LineBudget(seconds)
        self._faults: dict[bytes, str | None] = {}  # of schemas, by digest

    def error_of(self, model: str, number: int, body: Body) -> Bad | None:
        """Return the first error in the body of line `number`."""
        try:
            self._check_schemas(body)
            self._check_length(model, body)
        except InvalidRequest as error:
            return Bad(error.code or "invalid_value", error.message, number, f"body.{error.param}")
        except (msgspec.MsgspecError, RecursionError):  # the engine will refuse it
            return None
        return None

    def _check_schemas(self, body: Body) -> None:
        """Check the schemas of an answer and of functions. Raises InvalidRequest."""
        present = [name for name in _WITH_SCHEMAS.get(self._endpoint, ()) if name in body]
        if not present or self._schemas.is_spent:
            return
        fields = {name: msgspec.json.decode(body[name]) for name in present}
        if (raw := schema_of(self._endpoint, fields)) is not None and (why := self._fault(raw)):
            raise invalid(self._endpoint, why)
        for param, name, parameters in _functions(fields):
            if not isinstance(parameters, dict):
                why = "it is not an object."
            elif len(raw := msgspec.json.encode(parameters)) > MAX_SCHEMA_BYTES:
                why = f"it has more than {MAX_SCHEMA_BYTES} bytes."
            else:
                why = self._fault(raw)
            if why:
                message = f"Invalid schema for function '{name}': {why}"
                raise InvalidRequest(message, param=param, code="invalid_function_parameters")

    def _fault(self, raw: bytes) -> str | None:
        """Return why a schema is none; None for one, and for one that is not checked."""
        digest = hashlib.sha256(raw).digest()
        if digest not in self._faults and not self._schemas.is_spent:
            with self._schemas.spending():
                self._faults[digest] = _fault_of(raw)
        return self._faults.get(digest)

    def _check_length(self, model: str, body: Body) -> None:
        """Check that the prompt is not longer than the model's context. Raises InvalidRequest."""
        name = _PROMPTS.get(self._endpoint, "")
        if model not in self._contexts or name not in body or any(cut in body for cut in _CUTS):
            return
        limit, file = self._contexts[model]
        if len(bytes(body[name])) + len(bytes(body.get("instructions", b""))) <= limit or self._lengths.is_spent:
            return  # a token has a byte at least
        with self._lengths.spending():
            tokens = self._longest(name, body, file, limit)
        if tokens > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, the prompt has more than {limit}."
            )
            raise InvalidRequest(message, param=name, code="context_length_exceeded")

    def _longest(self, name: str, body: Body, file: str, limit: int) -> int:
        """Return a number of tokens that the longest prompt of a body has at least; little more than `limit`."""
        given = msgspec.json.decode(body[name])
        if self._endpoint == COMPLETIONS:
            prompts = given if isinstance(given, list) and not all(isinstance(part, int) for part in given) else [given]
            return max((_count([prompt], file, limit) for prompt in prompts), default=0)
        first = msgspec.json.decode(body["instructions"]) if "instructions" in body else None
        return _count([first, *_texts(given)], file, limit)


def _functions(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield where the parameters of each function are, its name, and the parameters, unless it has none."""
    tools, functions = fields.get("tools"), fields.get("functions")
    for index, tool in enumerate(tools) if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") == "function":
            nested = isinstance(tool.get("function"), dict)
            function = tool["function"] if nested else tool
            yield from _parameters(f"tools[{index}]{'.function' if nested else ''}", function)
    for index, function in enumerate(functions) if isinstance(functions, list) else ():
        if isinstance(function, dict):
            yield from _parameters(f"functions[{index}]", function)


def _parameters(where: str, function: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    if function.get("parameters") is not None:
        yield f"{where}.parameters", str(function.get("name"))[:64], function["parameters"]


def _fault_of(raw: bytes) -> str | None:
    from jobs.requests.json_schemas import InvalidJsonSchema, translate_errors, validator_of

    try:
        with translate_errors():
            validator_of(raw)
    except InvalidJsonSchema as error:
        return str(error)
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield the text of each turn of a chat or a response. Templates leave out some of what an assistant said."""
    for turn in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
        content = turn.get("content") if isinstance(turn, dict) and turn.get("role") != "assistant" else turn
        parts = content if isinstance(content, list) else [content]
        texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
        yield "".join(text for text in texts if isinstance(text, str))


def _count(prompt: list[Any], file: str, limit: int) -> int:
    """Return a number of tokens that texts, or a list of tokens, have at least; little more than `limit`."""
    tokens = 0
    for text in prompt:
        if isinstance(text, list):
            return len(text)
        for start in range(0, len(text) if isinstance(text, str) else 0, _SLICE):
            length = len(_tokenizer(file).encode(text[start : start + _SLICE], add_special_tokens=False).ids)
            tokens += max(0, length - (2 if start else 0))  # a cut may add one, and the beginning of a text another
            if tokens > limit:
                return tokens
    return tokens


@cache
def _tokenizer(file: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)

"""Read the lines of a batch file in bounded memory, and check them as OpenAI does.

    {"custom_id": str, "method": "POST", "url": "/v1/…", "body": {"model": str, …}}

A good line costs one typed decode that skips the prompt (about 1 µs); only a bad line is parsed again, to name its
error. Codes and messages are those recorded from the live service (`BatchError`: code, line, message,
param); blank lines are skipped and not counted, a byte order mark and CRLF are accepted.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, Final

import msgspec

from jobs.errors import InvalidRequest, NightmillError
from jobs.prompts.resolution import MESSAGES, PinnedPrompts, PromptReference, ResolvedPrompt
from jobs.requests import token_estimates
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES, SERVED_WITH

#: The maximum size of one line of a batch.
MAX_LINE_BYTES: Final = 32 << 20
BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_QUOTED = 100

#: The parameter that each endpoint requires in the body, and the error message.
REQUIRED: dict[str, tuple[str, str]] = {
    CHAT: ("messages", "Messages parameter is required."),
    COMPLETIONS: ("prompt", "Prompt parameter is required."),
    EMBEDDINGS: ("input", "Input parameter is required."),
    RESPONSES: ("input", "Input parameter is required."),
    RERANK: ("documents", "Documents parameter is required."),
    **dict.fromkeys(SERVED_WITH, ("input", "Input parameter is required.")),
}
_STREAM_NAMES = {
    CHAT: "Chat Completions",
    COMPLETIONS: "Completions",
    RESPONSES: "Responses",
}


#: Fields of a response that a batch refuses: earlier turns, and an answer that comes later.
ELSEWHERE = ("previous_response_id", "conversation", "background")

_NONE = msgspec.Raw(b"")
_read_number = msgspec.json.Decoder(float | str | None).decode


class _Body(msgspec.Struct):
    """The parts of a body that planning looks at; the rest is skipped unread."""

    model: str | None = None
    stream: bool | None = None
    messages: msgspec.Raw = _NONE
    prompt: msgspec.Raw = _NONE
    input: msgspec.Raw = _NONE
    documents: msgspec.Raw = _NONE
    max_completion_tokens: msgspec.Raw = _NONE
    max_output_tokens: msgspec.Raw = _NONE
    max_tokens: msgspec.Raw = _NONE
    n: msgspec.Raw = _NONE
    best_of: msgspec.Raw = _NONE

    def bounds(self, endpoint: str) -> dict[str, Any]:
        """Return the fields by which `token_estimates` bounds the answer; None for what is no number."""
        texts = {name: bytes(getattr(self, name)) for name in (*token_estimates.LIMITS, *token_estimates.CHOICES)}
        bounds: dict[str, Any] = {name: _value(text, _read_number) for name, text in texts.items() if text}
        return {**bounds, "prompt": _value(bytes(self.prompt))} if endpoint == COMPLETIONS else bounds


class _Request(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


class LineText(msgspec.Struct):
    """A checked line as the worker reads it: the body is still text."""

    custom_id: str
    body: msgspec.Raw


_planning = msgspec.json.Decoder(_Request)
working = msgspec.json.Decoder(LineText)


@dataclass(frozen=True, slots=True)
class Good:
    """A valid line. `inputs` is the number of embedding inputs, otherwise 1. `bounds` are those of its answer.

    `prompt_bytes` is the size of the stored prompt that it names.
    """

    custom_id: str
    model: str
    inputs: int
    bounds: dict[str, Any]
    prompt_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bad:
    """The error of a line, in the fields of OpenAI's `BatchError`."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass(frozen=True, slots=True)
class InputLine:
    """A raw line with its physical number (from 1), offset and length in bytes; `raw` is None when it is too long."""

    number: int
    offset: int
    length: int
    raw: bytes | None


def read(handle: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[InputLine]:
    """Yield the lines that are not blank. A line longer than `max_bytes` is skipped without being held."""
    offset = number = 0
    while raw := handle.readline(max_bytes + 1):
        number += 1
        length = len(raw)
        too_long = length > max_bytes and not raw.endswith(b"\n")
        while too_long and (rest := handle.readline(max_bytes)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        if too_long:
            yield InputLine(number, offset, length, None)
        elif text := (raw.removeprefix(BOM) if number == 1 else raw).strip(_BLANK):
            yield InputLine(number, offset, length, text)
        offset += length


def number_lines(raws: Iterable[bytes | Bad], max_bytes: int = MAX_LINE_BYTES) -> Iterator[InputLine | Bad]:
    """Yield lines as `read` will yield those of the file to which they are written, one after the other."""
    offset = 0
    for number, raw in enumerate(raws, 1):
        if isinstance(raw, Bad):
            yield raw
            continue
        yield InputLine(number, offset, len(raw) + 1, None if len(raw) > max_bytes else raw)
        offset += len(raw) + 1


def split(data: bytes) -> list[bytes]:
    """Split a shard's bytes into lines, as `read` counted them."""
    lines = (line.strip(_BLANK) for line in data.removeprefix(BOM).split(b"\n"))
    return [line for line in lines if line]


class LineChecker:
    """A checker of the lines of one file for one endpoint. Duplicate ids are found at the end, by `duplicates`.

    `prompts` looks up those that lines name.
    """

    def __init__(self, endpoint: str, prompts: PinnedPrompts | None = None) -> None:
        self.endpoint = endpoint
        self._prompts = prompts if endpoint in MESSAGES else None
        self.required, self._missing = REQUIRED[endpoint]
        self.model: str | None = None
        self.ids = Fingerprints()

    def check(self, text: InputLine) -> Good | Bad:
        if text.raw is None:
            return Bad("line_too_long", "This line is too long.", text.number)
        try:
            request = _planning.decode(text.raw)
            text.raw.decode()  # checks UTF-8 of the parts that the decoder skipped
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._explain(text.number, text.raw)
        prompt = self._prompt_of(text.number, request.body)
        if isinstance(prompt, Bad):
            return prompt
        model = prompt.model if prompt and request.body.model is None else request.body.model
        if model is None:
            return Bad("invalid_request", "Model parameter is required.", text.number, "body.model")
        return self._judge(text.number, request, model, prompt) or self._good(request, model, prompt)

    def _prompt_of(self, number: int, body: _Body) -> ResolvedPrompt | Bad | None:
        """Return the prompt that a line names, None where it names none, or why it cannot be used."""
        if self._prompts is None or bytes(body.prompt) in (b"", b"null"):
            return None
        try:
            return self._prompts.resolve(PromptReference.parse(_value(bytes(body.prompt))))
        except NightmillError as error:
            return Bad(error.code or "invalid_value", error.message, number, f"body.{error.param}")

    def _good(self, request: _Request, model: str, prompt: ResolvedPrompt | None) -> Good:
        self.ids.add(request.custom_id)
        body = request.body
        inputs = token_estimates.count_inputs(_value(bytes(body.input))) if self.endpoint == EMBEDDINGS else 1
        own = prompt.content["parameters"] if prompt else {}
        bounds = {name: own[name] for name in token_estimates.LIMITS if name in own}
        bounds |= body.bounds(self.endpoint)
        return Good(request.custom_id, model, inputs, bounds, prompt.bytes if prompt else 0)

    def _judge(self, number: int, request: _Request, model: str, prompt: ResolvedPrompt | None) -> Bad | None:
        body = request.body
        if request.method != "POST":
            return Bad("invalid_method", "The method of a batch request must be 'POST'.", number, "method")
        if request.url != self.endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            return Bad("invalid_url", message, number, "url")
        if body.stream:
            name = _STREAM_NAMES.get(self.endpoint, "Requests")
            message = f"{name}: Streaming is not supported in the Batch API."
            return Bad("streaming_unsupported", message, number, "body.stream")
        if prompt is None and bytes(getattr(body, self.required)) in (b"", b"null"):
            return Bad("invalid_request", self._missing, number, f"body.{self.required}")
        return self._check_model(number, model)

    def _check_model(self, number: int, model: str) -> Bad | None:
        if self.model is None:
            self.model = model
        if model == self.model:
            return None
        message = f"All requests of a batch must use one model; this one asks for '{quote(model)}', the first for "
        return Bad("model_mismatch", f"{message}'{quote(self.model)}'.", number, "body.model")

    def _explain(self, number: int, raw: bytes) -> Bad:
        unparsable = Bad("invalid_json_line", "This line is not parseable as valid JSON.", number)
        try:
            value = json.loads(raw, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return unparsable
        if not isinstance(value, dict):
            return unparsable
        for name in ("custom_id", "method", "url", "body"):
            if value.get(name) is None:
                return Bad("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
            expected = dict if name == "body" else str
            if not isinstance(value[name], expected):
                kind = "an object" if expected is dict else "a string"
                return Bad("invalid_type", f"Invalid type for '{name}': expected {kind}.", number, name)
        return self._explain_body(number, value["body"]) or unparsable

    def _explain_body(self, number: int, body: dict[str, Any]) -> Bad | None:
        if not isinstance(body.get("model"), str | None):
            return Bad("invalid_type", "Invalid type for 'body.model': expected a string.", number, "body.model")
        if not isinstance(body.get("stream"), bool | None):
            return Bad("invalid_type", "Invalid type for 'body.stream': expected a boolean.", number, "body.stream")
        return None


class Fingerprints:
    """A set of strings in 8 bytes each: 64-bit hashes in 256 buckets, sorted bucket by bucket.

    A Python set of a million ids takes 130 MB, this one 8 MB. A hash that occurs twice may be a collision: the caller
    reads the file again and compares the strings with such hashes.
    """

    def __init__(self) -> None:
        from array import array

        self._buckets = [array("q") for _ in range(256)]

    def add(self, text: str) -> None:
        value = hash(text)
        self._buckets[value & 255].append(value)

    def suspects(self) -> frozenset[int]:
        """Return the hashes that occurred more than once."""
        repeated: set[int] = set()
        for bucket in self._buckets:
            ordered = sorted(bucket)
            repeated.update(value for value, other in pairwise(ordered) if value == other)
        return frozenset(repeated)


def duplicates(handle: BinaryIO, suspects: frozenset[int]) -> Iterator[Bad]:
    """Read the file again and yield an error for each line whose `custom_id` occurred before."""
    seen: set[str] = set()
    for text in read(handle):
        custom_id = id_of(text.raw)
        if custom_id is None or hash(custom_id) not in suspects:
            continue
        if custom_id in seen:
            message = "The custom_id of this request is used by an earlier line."
            yield Bad("duplicate_custom_id", message, text.number, "custom_id")
        seen.add(custom_id)


class _Id(msgspec.Struct):
    custom_id: str


_ids = msgspec.json.Decoder(_Id)


def id_of(raw: bytes | None) -> str | None:
    """Return the `custom_id` of a line, None where it has none that can be read."""
    try:
        return _ids.decode(raw).custom_id if raw is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def check_self_contained(endpoint: str, body: dict[str, Any]) -> None:
    """Refuse a line that needs earlier turns, or an answer in the background. Raises InvalidRequest."""
    for name in ELSEWHERE if endpoint == RESPONSES else ():
        if body.get(name) not in (None, False):
            message = f"Responses: '{name}' is not supported in the Batch API."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")


def disable_storage(endpoint: str, body: dict[str, Any]) -> None:
    """Tell engines to store no request. OpenAI accepts a chat's metadata only with requests that it stores."""
    if endpoint == RESPONSES:
        body["store"] = False  # the default is true
    elif endpoint == CHAT and body.pop("store", None):
        body.pop("metadata", None)


def quote(text: str) -> str:
    """Return a text of the file as an error message quotes it: shortened, because a file's errors are stored."""
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


def _value(text: bytes, read: Callable[[bytes], Any] = msgspec.json.decode) -> Any:
    """Return the value of a field, None for one that cannot be read."""
    try:
        return read(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)

"""Read what OpenAI-compatible servers send, with tolerance.

200      usage is read out of the body, whatever else or null is in it; fields that OpenAI always sends and a server
         leaves out are added (see `jobs.inference.complete_answers`), and `usage` to the chunks of a stream that has it
         at the end; an answer that came whole in place of a stream is written out as one
4xx 5xx  {"error": {"message": …}} with OpenAI's four fields;
         {"detail": …}, {"object": "error", …}, {"error": "…"} and plain text wrapped into that
"""

import http.client
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from jobs.clock import now
from jobs.inference.answer_events import chat_chunks, completion_chunks, events_of_response
from jobs.inference.complete_answers import complete_chat, complete_response
from jobs.inference.responses import is_response
from jobs.inference.stored import is_completion
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES
from workers.engines.port import Answer, EngineFault, Usage

MAX_RETRY_SECONDS: Final = 3600.0
ERROR_TEXT_CHARACTERS: Final = 2000


EVENT_STREAM: Final = "text/event-stream"
STREAMED: Final = b"streamed"  # stands for a body that was handed on event by event
#: OpenAI's types of errors, and llama.cpp's for a prompt that is too long.
_KINDS: Final = frozenset({
    "authentication_error", "exceed_context_size_error", "insufficient_quota", "invalid_request_error",
    "not_found_error", "permission_error", "rate_limit_error", "rate_limit_exceeded", "server_error",
})  # fmt: skip
_DONE: Final = b"[DONE]"
#: A response's stream has no `[DONE]`: it ends with an event of one of these names.
_LAST: Final = frozenset({b"response.completed", b"response.incomplete", b"response.failed", b"error"})


class BrokenStream(Exception):
    """A stream of events ended early, or had an event that is too large."""


class NotJson(ValueError):
    """The body is no JSON object in UTF-8, or is nested too deeply."""


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


#: Larger numbers are no counts, and their sums might exceed a database's integers.
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None  # SGLang's field
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Reply(msgspec.Struct):
    usage: _Usage | None = None


_Any = msgspec.Raw | msgspec.UnsetType


class _Message(msgspec.Struct):
    role: _Any = msgspec.UNSET
    content: _Any = msgspec.UNSET
    refusal: _Any = msgspec.UNSET


class _Choice(msgspec.Struct):
    message: _Message
    index: _Any = msgspec.UNSET
    logprobs: _Any = msgspec.UNSET
    finish_reason: _Any = msgspec.UNSET


class _Chat(msgspec.Struct):
    choices: list[_Choice]
    id: _Any = msgspec.UNSET
    object: _Any = msgspec.UNSET
    created: _Any = msgspec.UNSET
    model: _Any = msgspec.UNSET


class _Chunk(msgspec.Struct):
    choices: msgspec.Raw
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_NOTHING: Final = _Details()
_reply = msgspec.json.Decoder(_Reply)
_chat = msgspec.json.Decoder(_Chat)
_chunk = msgspec.json.Decoder(_Chunk)


def answer_of(status: int, body: bytes) -> Answer:
    """Return a server's answer with OpenAI's status and error shape: a 422 of FastAPI is OpenAI's 400.

    Raises EngineFault for a body that is neither an answer nor an error.
    """
    if status >= 400:
        return Answer(400 if status == 422 else status, error_body(status, body))
    if status != 200:
        raise EngineFault(f"The endpoint answered {status}, which is neither an answer nor an error.")
    if body is STREAMED:
        return Answer(status, b"")
    try:
        usage = usage_of(body)
    except NotJson as error:
        raise EngineFault(f"The endpoint's answer is not JSON: {error}") from error
    return Answer(status, join_lines(body), usage)


def join_lines(body: bytes) -> bytes:
    """Return the JSON without line breaks: in valid JSON they only stand between tokens."""
    if b"\n" in body or b"\r" in body:
        return body.replace(b"\n", b" ").replace(b"\r", b" ").strip()
    return body


def usage_of(body: bytes) -> Usage:
    """Return the usage that an answer reports, zero where it reports none."""
    try:
        if not body.isascii():
            body.decode()
        usage = _usage_of_body(body)
    except _UNREADABLE as error:
        raise NotJson(str(error)) from error
    return _usage(usage) if usage else Usage()


def _usage_of_body(body: bytes) -> _Usage | None:
    """Return the usage of an answer, None where it has unexpected types.

    Raises NotJson for a body that is no object.
    """
    try:
        return _reply.decode(body).usage
    except msgspec.ValidationError:
        if not isinstance(msgspec.json.decode(body), dict):
            raise NotJson("not a JSON object") from None
        return None


def _usage(reported: _Usage) -> Usage:
    details = reported.prompt_tokens_details or reported.input_tokens_details or _NOTHING
    given = reported.completion_tokens_details or reported.output_tokens_details or _NOTHING
    inputs = reported.prompt_tokens or reported.input_tokens or 0
    outputs = reported.completion_tokens or reported.output_tokens or 0
    reasoning = given.reasoning_tokens or reported.reasoning_tokens or 0
    return Usage(inputs, min(details.cached_tokens or 0, inputs), outputs, min(reasoning, outputs))


def complete(url: str, body: bytes, request: Mapping[str, Any]) -> bytes:
    """Return the body of an answer with all fields that OpenAI always sends; any other body as it is."""
    try:
        if url == CHAT and _is_sparse(_chat.decode(body)):
            return msgspec.json.encode(complete_chat(msgspec.json.decode(body), request))
        if url == RESPONSES and is_response(response := msgspec.json.decode(body)):
            return msgspec.json.encode(complete_response(response, request))
    except (msgspec.MsgspecError, RecursionError):
        pass
    return body


def _is_sparse(chat: _Chat) -> bool:
    """Return whether a chat completion lacks a field that OpenAI always sends. Most servers leave out none."""
    if chat.choices and msgspec.UNSET in (chat.id, chat.object, chat.created, chat.model):
        return True
    for choice in chat.choices:
        message = choice.message
        if msgspec.UNSET in (
            choice.index,
            choice.logprobs,
            choice.finish_reason,
            message.role,
            message.content,
            message.refusal,
        ):
            return True
    return False


def events_of_answer(url: str, body: bytes, request: Mapping[str, Any]) -> list[bytes]:
    """Return the events of an answer that came whole; none for a body that is not an answer."""
    try:
        return list(
            map(msgspec.json.encode, _events_of(url, msgspec.json.decode(complete(url, body, request)), request))
        )
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, AttributeError):  # a part has an unexpected type
        return []


def _events_of(url: str, answer: Any, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    usage = wants_usage(request)
    if url == RESPONSES and is_response(answer):
        return events_of_response(answer)
    if url == CHAT and is_completion(answer):
        return chat_chunks(answer, usage=usage)
    if url == COMPLETIONS and isinstance(answer, dict) and isinstance(answer.get("choices"), list):
        return completion_chunks(answer, usage=usage)
    return []


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Return whether the request asks for usage in the last chunk, so that the other chunks have a null usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def add_null_usage(chunk: bytes) -> bytes:
    """Add a null usage to a chunk of such a stream; return any other data as it is."""
    try:
        unsaid = _chunk.decode(chunk).usage is msgspec.UNSET
    except (msgspec.MsgspecError, RecursionError):
        return chunk
    return chunk[: chunk.rindex(b"}")] + b',"usage":null}' if unsaid else chunk


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events, up to `[DONE]` or an event that ends a response. Raises BrokenStream.

    Of the format (https://html.spec.whatwg.org/multipage/server-sent-events.html) it reads events of one line.
    """
    event = b""
    async for line in lines:
        name, _, data = line.strip().partition(b":")
        data = data.strip()
        if name == b"event":
            event = data
        if name != b"data":
            continue
        if data == _DONE:
            return
        yield data
        if event in _LAST:
            return
    raise BrokenStream("it ended before its last event")


async def lines(parts: AsyncIterable[bytes], limit: int) -> AsyncIterator[bytes]:
    """Yield the lines of a stream of bytes. Raises BrokenStream for a line that is longer than `limit`."""
    begun: list[bytes] = []
    size = 0
    async for part in parts:
        head, *others = part.split(b"\n")
        begun.append(head)
        size += len(head)
        for other in others:
            yield b"".join(begun)
            begun, size = [other], len(other)
        if size > limit:
            raise BrokenStream("an event is too large")
    yield b"".join(begun)


def error_body(status: int, body: bytes) -> bytes:
    """Return an error's body in OpenAI's shape."""
    try:
        decoded: Any = msgspec.json.decode(body)
        error = decoded.get("error") if isinstance(decoded, dict) else None
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            shaped = complete_error(status, error)
            return join_lines(body) if shaped == error else msgspec.json.encode({"error": shaped})
        return msgspec.json.encode({"error": _error(status, decoded)})
    except _UNREADABLE:
        return msgspec.json.encode({"error": _error(status, body.decode(errors="replace"))})


def complete_error(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error with all of OpenAI's fields: one of OpenAI's types, and `param` and `code` as a word or null.

    vLLM's server sends class names as types and the status as code; llama.cpp has no `param`.
    """
    kind, param, code = error.get("type"), error.get("param"), error.get("code")
    known = isinstance(kind, str) and kind in _KINDS
    return {
        **error,
        "type": kind if known else "server_error" if status >= 500 else "invalid_request_error",
        "param": param if isinstance(param, str) else None,
        "code": code if isinstance(code, str) and not code.isdigit() else None,
    }


def _error(status: int, decoded: Any) -> dict[str, Any]:
    fields = decoded if isinstance(decoded, dict) else {}
    known = {name: fields[name] for name in ("type", "param", "code") if name in fields}
    return complete_error(status, {"message": _message(decoded) or _phrase(status), **known})


def _message(value: Any) -> str:
    """Return the message in an error of any shape."""
    if isinstance(value, dict):
        text = next((value[key] for key in ("message", "error", "detail", "msg") if value.get(key)), value)
        return _message(text) if text is not value else _short(value)
    return value.strip()[:ERROR_TEXT_CHARACTERS] if isinstance(value, str) else _short(value)


def _short(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:ERROR_TEXT_CHARACTERS] if value else ""


def _phrase(status: int) -> str:
    return http.client.responses.get(status, f"HTTP status {status}")


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, OverflowError):  # a year or an offset of twenty digits
            return None
    return min(max(0.0, seconds), MAX_RETRY_SECONDS) if seconds == seconds else None


class _Card(msgspec.Struct):
    id: str
    owned_by: Any = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class ModelListing(NamedTuple):
    """The names of a server's models, and whether the server is vLLM."""

    names: frozenset[str]
    of_vllm: bool


def listing(body: bytes) -> ModelListing | None:
    """Read a list of models; return None if the body is none."""
    try:
        cards = msgspec.json.decode(body, type=_Cards).data
    except _UNREADABLE:
        return None
    return ModelListing(frozenset(card.id for card in cards), any(card.owned_by == "vllm" for card in cards))

"""Count what one interactive request took, whether its answer ended or was cut short.

    engine ──chunk──▶ meter ──▶ client        streams of chats and completions report their usage in a last chunk: the
                                              meter asks for it, and a client that did not ask gets no such chunk

An answer that is cut short took its prompt, estimated by its bytes, and a token for each chunk of generated text: a
stream that fails, and every request whose client leaves, or whose deadline passes, while the engine has it.
"""

import re
from dataclasses import replace
from typing import Any, Final

import msgspec

from jobs.inference.interactive import QueuedRequest
from jobs.requests.endpoints import CHAT, COMPLETIONS, RESPONSES
from jobs.requests.token_estimates import input_tokens
from jobs.usage.minutes import UsageKey
from workers.engines.port import Answer, Usage
from workers.engines.wire import NotJson, usage_of, wants_usage
from workers.runtime.usage_counter import UsageCounter

_OPTIONS: Final = "stream_options"
_NULL_USAGE: Final = b',"usage":null}'
_NO_CHOICES: Final = b'"choices":[]'  # what a server that reports no usage sends in the last chunk
#: What a chunk has that was generated.
_GENERATED: Final = {
    CHAT: re.compile(rb'"(content|reasoning|reasoning_content|refusal|arguments)": ?"[^"]'),
    COMPLETIONS: re.compile(rb'"text": ?"[^"]'),
    RESPONSES: re.compile(rb'"type": ?"response\.[a-z_.]+\.delta"'),
}
_NOTHING: Final = re.compile(rb"(?!)")


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    response: msgspec.Raw = msgspec.Raw(b"{}")


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class AnswerMeter:
    """The usage of one request. Without a `counter` it is not counted: another request has it as a part."""

    def __init__(self, request: QueuedRequest, body: dict[str, Any], counter: UsageCounter | None) -> None:
        self._counter, self._body = counter, body
        self._key = UsageKey(request.tenant, request.key_id, str(body.get("model")), request.url, tier=request.tier)
        self._prompt_tokens = input_tokens(len(request.body))
        self._generated = _GENERATED.get(request.url, _NOTHING)
        self._chunks, self._usage = 0, Usage()
        options = body.get(_OPTIONS)
        can_report = request.stream and request.url in (CHAT, COMPLETIONS) and isinstance(options, dict | None)
        self._hides_usage = can_report and not wants_usage(body)

    def engine_body(self) -> dict[str, Any]:
        """Return the body of the request as the engine gets it."""
        if not self._hides_usage:
            return self._body
        return {**self._body, _OPTIONS: {**(self._body.get(_OPTIONS) or {}), "include_usage": True}}

    def take_chunk(self, chunk: bytes) -> bytes | None:
        """Note a chunk of a stream; return it as the client gets it, None where the client gets none."""
        self._chunks += self._generated.search(chunk) is not None
        if b'"usage"' not in chunk:
            return chunk
        if chunk.endswith(_NULL_USAGE):
            if not self._hides_usage:
                return chunk
            return None if _NO_CHOICES in chunk else chunk.removesuffix(_NULL_USAGE) + b"}"
        try:
            fields = _decode_chunk(chunk)
            usage = usage_of(chunk) if fields.choices is not None else usage_of(bytes(fields.response))
        except (msgspec.MsgspecError, NotJson):
            return chunk
        if usage.total_tokens:
            self._usage = usage
        return None if self._hides_usage and fields.choices == [] else chunk

    def finish(self, answer: Answer) -> Answer:
        """Count the request, and return its answer with its usage, which that of a stream lacks."""
        if not answer.usage.total_tokens and (self._chunks or self._usage.total_tokens):
            answer = replace(answer, usage=self._usage_so_far())
        if self._counter is not None:
            self._counter.add_answer(self._key, answer)
        self._counter = None
        return answer

    def cancel(self) -> None:
        """Count the request, whose answer the engine was made to end, if it did not end before."""
        if self._counter is not None:
            self._counter.add(self._key, self._usage_so_far())
        self._counter = None

    def close(self) -> None:
        """Count the request by its chunks, if its answer did not end."""
        if self._chunks:
            self.cancel()

    def _usage_so_far(self) -> Usage:
        """Return the usage that chunks reported, else an estimate from what was generated."""
        return self._usage if self._usage.total_tokens else Usage(self._prompt_tokens, 0, self._chunks)

"""Assemble the output lines of a batch from bytes: the body of an answer is not parsed.

    record on disk:  <line in the shard> TAB <1|0> TAB <output line> LF        1: output file, 0: error file

An HTTP answer of any status fills `response` and leaves `error` null; a line without an answer has the reverse.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import msgspec

from jobs.requests.endpoints import RESPONSES
from workers.engines.port import Answer, Request, Usage
from workers.runtime import outcomes

#: Lines in flight in a round of suspects.
GROUP_SIZE = 16
_DEATHS_IN_GROUP = 2
_DEATHS_ISOLATED = 2


@dataclass(slots=True)
class FailureHistory:
    """The failures of one line over all attempts. They decide how many other lines may be in flight at the next try.

        faults    the request failed and its server lived: refused, reset, timed out, 5xx
        deaths    the engine died while the line was in flight. Most of the lines in flight did not cause it
        isolated  deaths while nothing else was in flight: the line is almost certainly the cause

        no failure ─▶ with all ──▶ one ─▶ 16 at a time ──▶ two deaths, or one try left ─▶ isolated ──▶ spent

    So a poison line kills its engine at most four times. A line that is refused twice and then answered succeeds,
    however often the poison lines beside it kill the engine. The shard stores the history when its claim is released.
    """

    faults: int = 0
    deaths: int = 0
    isolated: int = 0

    def is_spent(self, tries: int) -> bool:
        """Return whether the line becomes an error line."""
        return self.faults >= tries or self.isolated >= _DEATHS_ISOLATED

    def must_isolate(self, tries: int) -> bool:
        """Return whether the next try is made with nothing else in flight."""
        return self.deaths >= _DEATHS_IN_GROUP or self.faults >= tries - 1

    def width(self, tries: int) -> int | None:
        """Return how many lines with such a history are in flight at once; None: all."""
        if self.must_isolate(tries):
            return 1
        return GROUP_SIZE if self.faults or self.deaths else None

    def add(self, *, died: bool, isolated: bool) -> None:
        if not died:
            self.faults += 1
        else:
            self.deaths += 1
            self.isolated += isolated

    def to_list(self) -> list[int]:
        """Return the values that the shard stores. `FailureHistory(*values)` is the inverse."""
        return list(astuple(self))


_encode = msgspec.json.Encoder().encode

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")


@dataclass(slots=True)
class Item:
    """One line without a result yet. `failures` is its history over all attempts.

    `followers` are identical lines that share its answer, where the job asked for that. `prompt` is the prompt that the
    line names, as its answer does. `resolved_model` is the model that is asked, where the line names another one.
    """

    line: int
    custom_id: str
    id: str
    request: Request
    failures: FailureHistory = field(default_factory=FailureHistory)
    fault: Exception | None = None
    seconds: float | None = None  # in the engine, once it has answered
    followers: list["Item"] = field(default_factory=list)
    prompt: dict[str, Any] | None = None
    resolved_model: str | None = None


class LineRecord(msgspec.Struct, frozen=True, gc=False):
    """A line's result, ready for a segment, with its outcomes (see `workers.runtime.outcomes`).

    `seconds` is the time in the engine; None where the engine was not asked for this line. `requests` is 1 where the
    engine, the cache (`is_cached`) or an equal line has answered, or a failed attempt cost tokens; else it is 0.
    """

    line: int
    good: bool
    data: bytes
    usage: Usage = Usage()
    outcomes: tuple[str, ...] = ()
    seconds: float | None = None
    requests: int = 0
    is_cached: bool = False


def answer_record(item: Item, answer: Answer, leader: Item | None = None) -> LineRecord:
    """Make the record of an engine's answer of any status. With a `leader` it is a copy, and costs nothing.

    A refusal that cost tokens has its usage in the line: a batch's usage is the sum over its lines.
    """
    good = 200 <= answer.status < 300
    usage = Usage() if leader else answer.usage
    added = {"usage": _usage_fields(item.request.url, usage)} if not good and usage.total_tokens else {}
    added |= {"prompt": item.prompt} if good and item.prompt else {}
    raw = _add_fields(answer.body, added) if added else answer.body
    body = raw if b"\n" not in raw else _compact(raw)
    extra = b',"resolved_model":' + _encode(item.resolved_model) if item.resolved_model else b""
    extra += b',"duplicate_of":' + _encode(leader.custom_id) if leader else b""
    line = b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b},"error":null%b}' % (
        item.id.encode(),
        _encode(item.custom_id),
        answer.status,
        item.request.request_id.encode(),
        body,
        extra,
    )
    words = outcomes.outcomes_of(item.request.url, answer)
    seconds = None if leader else item.seconds
    requests = int((leader or item).seconds is not None or usage.total_tokens > 0)
    data = _frame(item.line, good, line)
    return LineRecord(item.line, good, data, usage, words, seconds, requests, answer.is_cached and not leader)


def error_record(line: int, item_id: str, custom_id: str, code: str, message: str) -> LineRecord:
    """Make the record of a line without an answer."""
    data = _frame(line, False, error_line(item_id, custom_id, code, message))
    return LineRecord(line, False, data, outcomes=outcomes.error_outcomes(code))


def error_line(item_id: str, custom_id: str, code: str, message: str) -> bytes:
    return b'{"id":"%b","custom_id":%b,"response":null,"error":{"code":%b,"message":%b}}' % (
        item_id.encode(),
        _encode(custom_id),
        _encode(code),
        _encode(message),
    )


def parse(record: bytes) -> tuple[int, bool, bytes]:
    """Split a record of a segment into the line in the shard, whether it is good, and the output line."""
    line, good, data = record.split(b"\t", 2)
    return int(line), good == b"1", data.rstrip(b"\n")


def line_id(job_id: str, n: int, line: int) -> str:
    """Return the id of a line, `batch_req_…`, which is the same in every attempt."""
    return f"batch_req_{job_id.rpartition('_')[2]}{n:05x}{line:03x}"


def _frame(line: int, good: bool, data: bytes) -> bytes:
    return b"%d\t%d\t%b\n" % (line, good, data)


def _compact(body: bytes) -> bytes:
    return msgspec.json.format(body, indent=-1) if body.strip() else b"null"


def _add_fields(body: bytes, added: Mapping[str, Any]) -> bytes:
    """Add fields to a body; return a body that is no JSON object as it is."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return body
    return _encode({**fields, **added}) if isinstance(fields, dict) else body


def _usage_fields(url: str, usage: Usage) -> dict[str, Any]:
    """Return the usage in the fields of the endpoint's answers."""
    given, made = ("input", "output") if url == RESPONSES else ("prompt", "completion")
    return {
        f"{given}_tokens": usage.input_tokens,
        f"{given}_tokens_details": {"cached_tokens": usage.cached_tokens},
        f"{made}_tokens": usage.output_tokens,
        f"{made}_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }

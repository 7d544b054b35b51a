"""What an interactive request took is counted, whether its answer ends or is cut short."""

from typing import Any

import msgspec
import pytest

from jobs.inference.interactive import QueuedRequest
from jobs.usage.minutes import UsageKey
from workers.engines.port import Answer, Usage, refusal
from workers.inference.answer_meter import AnswerMeter

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


class Counter:
    """Record what is counted."""

    def __init__(self) -> None:
        self.counted: list[tuple[UsageKey, Usage]] = []

    def add(self, key: UsageKey, usage: Usage) -> None:
        self.counted.append((key, usage))

    def add_answer(self, key: UsageKey, answer: Answer) -> None:
        self.add(key, answer.usage)


def meter_of(
    counter: Counter | None, body: dict[str, Any] | None = None, *, url: str = CHAT, stream: bool = True
) -> AnswerMeter:
    fields = {"model": "m", **(body or {})}
    request = QueuedRequest("req_1", url, b"x" * 41, "p", 9e9, stream=stream, key_id="k")
    return AnswerMeter(request, fields, counter)  # type: ignore[arg-type]


def chunk(**fields: Any) -> bytes:
    return msgspec.json.encode({"choices": [{"delta": {"content": "a"}}], **fields})


LAST = msgspec.json.encode({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


def test_stream_is_counted_by_the_usage_that_its_client_did_not_ask_for() -> None:
    counter = Counter()
    meter = meter_of(counter)

    assert meter.engine_body()["stream_options"] == {"include_usage": True}
    none = msgspec.json.encode({"choices": [], "usage": None})  # of a server that reports none
    shown = [meter.take_chunk(event) for event in (chunk(usage=None), chunk(), none, LAST)]
    answer = meter.finish(Answer(200, b""))
    meter.close()

    assert shown == [chunk(), chunk(), None, None]
    assert answer.usage == Usage(5, 0, 2)
    assert counter.counted == [(UsageKey("p", "k", "m", CHAT), Usage(5, 0, 2))]


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "x": 1}])
def test_client_that_asks_for_usage_gets_it(options: dict[str, Any]) -> None:
    meter = meter_of(Counter(), {"stream_options": options})

    assert meter.engine_body()["stream_options"] == options
    assert [meter.take_chunk(event) for event in (chunk(usage=None), LAST)] == [chunk(usage=None), LAST]
    assert meter.finish(Answer(200, b"")).usage == Usage(5, 0, 2)


@pytest.mark.parametrize(
    ("body", "url", "stream"), [({"stream_options": 3}, CHAT, True), ({}, RESPONSES, True), ({}, CHAT, False)]
)
def test_other_requests_reach_the_engine_unchanged(body: dict[str, Any], url: str, stream: bool) -> None:
    assert meter_of(Counter(), body, url=url, stream=stream).engine_body() == {"model": "m", **body}


def test_response_is_counted_by_its_last_event() -> None:
    counter = Counter()
    meter = meter_of(counter, url=RESPONSES)
    usage = {"input_tokens": 8, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}
    for event in (
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.completed", "response": {"usage": usage}},
    ):
        assert meter.take_chunk(msgspec.json.encode(event)) is not None
    meter.finish(Answer(200, b""))

    assert [usage for _, usage in counter.counted] == [Usage(8, 2, 3)]


def test_stream_that_is_cut_short_counts_its_chunks() -> None:
    counter = Counter()
    meter = meter_of(counter)
    role = msgspec.json.encode({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for event in (role, chunk(), chunk()):
        meter.take_chunk(event)
    meter.close()
    meter.close()

    assert [usage for _, usage in counter.counted] == [Usage(11, 0, 2)]


def test_stream_that_fails_counts_its_chunks() -> None:
    counter = Counter()
    meter = meter_of(counter)
    meter.take_chunk(chunk())
    answer = meter.finish(refusal(502, "The stream broke."))
    meter.close()

    assert answer.usage == Usage(11, 0, 1)
    assert [usage for _, usage in counter.counted] == [Usage(11, 0, 1)]


@pytest.mark.parametrize("stream", [True, False])
def test_request_that_is_cancelled_counts_its_prompt_once(stream: bool) -> None:
    counter = Counter()
    meter = meter_of(counter, stream=stream)
    meter.cancel()
    meter.close()

    assert [usage for _, usage in counter.counted] == [Usage(11)]


def test_request_without_an_answer_counts_nothing() -> None:
    counter = Counter()
    meter_of(counter).close()
    meter_of(None).finish(Answer(200, b"", Usage(1)))

    assert counter.counted == []


def test_usage_has_the_tier_of_its_request() -> None:
    counter = Counter()
    request = QueuedRequest("req_1", CHAT, b"{}", "p", 9e9, key_id="k", tier="flex")
    AnswerMeter(request, {"model": "m"}, counter).finish(Answer(200, b"", Usage(1)))  # type: ignore[arg-type]

    assert counter.counted == [(UsageKey("p", "k", "m", CHAT, tier="flex"), Usage(1))]


def test_usage_that_cannot_be_read_leaves_the_stream_as_it_is() -> None:
    meter = meter_of(Counter())
    odd = b'{"choices":3,"usage":{"prompt_tokens":"many"}}'

    assert meter.take_chunk(odd) == odd
    assert meter.finish(refusal(400, "no")).usage == Usage()

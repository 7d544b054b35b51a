"""Lines of a batch's output: what they say is what the batch counts."""

import json

import pytest

from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.port import Answer, Request, Usage, refusal
from workers.engines.wire import usage_of
from workers.runtime.output_lines import Item, answer_record, parse

COST = Usage(20, 4, 10, 2)


def item(line: int = 0, url: str = CHAT) -> Item:
    return Item(line, f"c{line}", f"batch_req_{line}", Request(url, {}, f"req_{line}"))


def body_of(record: bytes) -> bytes:
    return json.dumps(json.loads(parse(record)[2])["response"]["body"]).encode()


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
def test_refusal_with_cost_includes_its_usage(url: str) -> None:
    refused = refusal(422, "Not of the schema.", code="invalid_json_schema_output")

    record = answer_record(item(url=url), Answer(422, refused.body, COST))

    body = body_of(record.data)
    assert record.usage == usage_of(body) == COST
    assert json.loads(body)["error"] == json.loads(refused.body)["error"]
    assert json.loads(body)["usage"]["total_tokens"] == 30


def test_a_copy_of_it_costs_nothing_and_says_nothing() -> None:
    refused = Answer(422, refusal(422, "Not of the schema.").body, COST)

    record = answer_record(item(1), refused, item(0))

    assert (record.usage, usage_of(body_of(record.data))) == (Usage(), Usage())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (Answer(400, b'{"error": {}}'), b'{"error": {}}'),
        (Answer(200, b'{"a":1}', COST), b'{"a":1}'),
        (Answer(422, b"[1]", COST), b"[1]"),
        (Answer(502, b"broken", COST), b"broken"),
    ],
)
def test_other_bodies_are_passed_through_unchanged(answer: Answer, body: bytes) -> None:
    assert b'"body":' + body + b"}" in answer_record(item(), answer).data

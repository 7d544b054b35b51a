"""The child that checks: it says what is wrong, fetches nothing, and does not hold anybody up."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.timings import Timings
from workers.middleware import schema_checker as checking
from workers.middleware.schema_checker import SPENT, TOO_LONG, BadSchema, SchemaChecker, SlownessBudget

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "near": {"$ref": "#/$defs/many"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"many": {"type": "array", "items": {"$ref": "#"}}},
}


#: Each of forty looks at the next twice.
_EACH = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)}
DOUBLING = {"$defs": {**_EACH, "40": {"type": "null"}}, "$ref": "#/$defs/0"}


@pytest.fixture(scope="module")
def checker() -> Iterator[SchemaChecker]:
    made = SchemaChecker()
    yield made
    asyncio.run(made.close())


def raw(schema: Any) -> bytes:
    return json.dumps(schema).encode()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"city": "Rome"}', None),
        ('{"city": "Rome", "near": [{"city": "Ostia"}]}', None),
        ('{"city": 5}', "$.city: 5 is not of type 'string'"),
        ('{"city": "Rome", "near": [{}]}', "$.near[0]: 'city' is a required property"),
        ("[]", "[] is not of type 'object'"),
        ("Rome", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"city": NaN}', "it is not JSON: NaN is not a JSON value"),
        ('```json\n{"city": "Rome"}\n```', "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
async def test_checker_reports_fault_of_text(checker: SchemaChecker, text: str, fault: str | None) -> None:
    assert await checker.faults(raw(CITY), [text, '{"city": "Rome"}']) == [fault, None]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"properties": []},
        {"pattern": "("},
        {"$ref": "#/$defs/none"},
        {"properties": {"a": {"$ref": "#nowhere"}}},
        {"minLength": "long"},
    ],
)
async def test_invalid_schema_raises_bad_schema(checker: SchemaChecker, schema: Any) -> None:
    with pytest.raises(BadSchema):
        await checker.check(raw(schema))
    await checker.check(raw(CITY))


async def test_nothing_is_fetched(checker: SchemaChecker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        for schema in ({"$ref": url}, {"$id": url, "$ref": "other"}, {"$schema": url, "$ref": "#/a", "a": {}}):
            with pytest.raises(BadSchema, match="leads nowhere") if "$schema" not in schema else nullcontext():
                await checker.faults(raw(schema), ["1"])
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 60 + 'b"'),
        (DOUBLING, "1"),
    ],
)
async def test_endless_check_is_ended_and_next_check_succeeds(schema: Any, text: str) -> None:
    checker = SchemaChecker(replace(Timings(), schema_check=0.7))

    await checker.check(raw(schema))
    assert "could not be checked" in str(await checker.faults(raw(schema), [text]))
    with pytest.raises(BadSchema, match="could not be checked"):
        await checker.check(raw(schema))
    checker._seconds = 10.0
    assert await checker.faults(raw(CITY), ['{"city": "Rome"}']) == [None]
    await checker.close()


async def test_requests_behind_an_endless_check_wait_for_it_once(caplog: pytest.LogCaptureFixture) -> None:
    checker = SchemaChecker(replace(Timings(), schema_check=0.7))
    await checker.check(raw(DOUBLING))

    slow = [asyncio.create_task(checker.faults(raw(DOUBLING), ["1"])) for _ in range(4)]

    assert all("could not be checked" in str(found) for found in await asyncio.gather(*slow))
    assert [record.message for record in caplog.records].count("schema_child_replaced") == 1
    await checker.close()


def slow(n: int) -> bytes:
    """Another one each time."""
    return raw({**DOUBLING, "title": str(n)})


async def test_only_the_project_with_endless_schemas_is_refused() -> None:
    checker = SchemaChecker(replace(Timings(), schema_check=0.7, schema_slow=0.3, schema_budget=1.0))

    found = [await checker.faults(slow(n), ["1"], "theirs") for n in range(5)]

    assert found == [[TOO_LONG]] * 2 + [[SPENT]] * 3
    with pytest.raises(BadSchema, match="in a minute"):
        await checker.check(raw(CITY), "theirs")
    checker._seconds = 10.0
    assert await checker.faults(raw(CITY), ['{"city": "Rome"}'], "ours") == [None]
    await checker.close()


def test_its_child_is_confined(checker: SchemaChecker) -> None:
    asyncio.run(checker.check(raw(CITY)))
    assert checker._child is not None
    status = Path(f"/proc/{checker._child._process.pid}/status").read_text()

    assert {"NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000"} <= set(status.splitlines())


async def test_tenants_take_turns() -> None:
    checker = SchemaChecker(replace(Timings(), schema_check=1.5))
    theirs = [asyncio.create_task(checker.faults(slow(n), ["1"], "theirs")) for n in range(4)]
    await asyncio.sleep(0)

    assert await checker.faults(raw(True), ["1"], "ours") == [None]

    assert sum(task.done() for task in theirs) == 1
    for task in theirs:
        task.cancel()
    await checker.close()


async def test_references_are_so_many_and_each_is_looked_up_once(checker: SchemaChecker) -> None:
    with pytest.raises(BadSchema, match="more than 1000 references"):
        await checker.check(raw([{"$ref": "#"}] * 1001))
    await checker.check(raw({"$defs": {str(n): {"$ref": "#"} for n in range(1000)}}))


async def test_killed_child_is_replaced_transparently(checker: SchemaChecker) -> None:
    await checker.check(raw(CITY))
    assert checker._child is not None
    checker._child.kill()

    assert await checker.faults(raw(CITY), ['{"city": "Rome"}', "5"]) == [None, "5 is not of type 'object'"]


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
async def test_a_schema_without_end_is_none(checker: SchemaChecker, schema: Any) -> None:
    with pytest.raises(BadSchema, match="never ends"):
        await checker.faults(raw(schema), ["1"])


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "http://json-schema.org/draft-04/schema#", "patternProperties": {"(": {}}},
        {"$schema": ["x"]},
    ],
)
async def test_schema_that_breaks_the_library_is_invalid_and_the_child_survives(
    checker: SchemaChecker, schema: Any
) -> None:
    await checker.check(raw(CITY))
    child = checker._child

    with pytest.raises(BadSchema, match="cannot be used"):
        await checker.faults(raw(schema), ['{"a": 1}'])
    assert checker._child is child


async def test_checker_survives_deep_or_large_answer(checker: SchemaChecker) -> None:
    deep = "[" * 100_000

    assert (await checker.faults(raw({"type": "array"}), [deep]))[0] is not None
    assert await checker.faults(raw(True), ["1" * (1 << 20)]) == ["it is too large to be checked."]
    assert await checker.faults(raw(True), ['"\\ud800"', '"\ud800"']) == [None, None]


async def test_valid_schemas_are_remembered_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "_GOOD", 2)
    looked: list[bytes] = []

    async def faults(schema: bytes, _texts: list[str], _tenant: str) -> list[str | None]:
        looked.append(schema)
        return []

    fresh = SchemaChecker()
    monkeypatch.setattr(fresh, "faults", faults)
    for name in (b"a", b"b", b"a", b"c", b"b", b"a"):
        await fresh.check(name)

    assert looked == [b"a", b"b", b"c", b"a"]


async def test_a_schema_that_is_itself_too_much_for_the_child_is_none() -> None:
    checker = SchemaChecker()
    await checker.check(raw(True))
    assert checker._child is not None
    os.kill(checker._child._process.pid, signal.SIGSTOP)
    checker._seconds = 0.1

    with pytest.raises(BadSchema, match="could not be checked"):
        await checker.check(raw(CITY))
    assert checker._child is None


def test_spent_time_of_slow_schemas_is_forgiven_over_time() -> None:
    at = 0.0
    budget = SlownessBudget(clock=lambda: at)

    for _ in range(1000):
        budget.charge("quick", 0.9)
    for _ in range(5):
        assert not budget.is_spent("slow")
        budget.charge("slow", 5.0)

    assert (budget.is_spent("quick"), budget.is_spent("slow")) == (False, True)
    at = 16.0
    assert not budget.is_spent("slow")
    at = 200.0
    budget.charge("other", 5.0)
    assert set(budget._spent) == {"other"}

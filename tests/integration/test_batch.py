"""The whole way of a batch, on SQLite and PostgreSQL: planned, run, finished, whatever breaks on the way."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, StorageFull, StorageUnavailable
from jobs.fleet import workers
from jobs.ledger import audit, events, ledger, measures, shards
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Outcome, Segment, Shard
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.requests.endpoints import RESPONSES
from jobs.timings import Timings
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from workers import lifecycle
from workers.batches import finishing
from workers.engines.port import Answer, EngineBusy, Request, refusal


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def inline(db: Database, tmp_path: Path, asked: list[str]) -> Iterator[InlineDeployment]:
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append)) as made:
        yield made


def _batch(count: int, prompt: str = "hello") -> bytes:
    return jsonl([chat_line(f"r{n}", f"{prompt} {n}") for n in range(count)])


def _ids(lines: list[dict[str, object]]) -> list[object]:
    return [line["custom_id"] for line in lines]


def _usage(lines: list[dict[str, object]]) -> int:
    return sum(line["response"]["body"]["usage"]["total_tokens"] for line in lines)  # type: ignore[index]


def _measured(db: Database, name: str) -> dict[str, int]:
    """How often, by label."""
    sums = Counter[str]()
    with db.read() as session:
        for row in measures.rows(session):
            if row.name == name:
                sums[row.label] += row.count
    return dict(sums)


def test_every_line_comes_out_once_in_order_with_exact_usage(inline: InlineDeployment, asked: list[str]) -> None:
    (job,) = inline.drain(inline.submit(_batch(50)))

    output, errors = inline.results(job)
    assert job.state == JobState.SUCCEEDED
    assert _ids(output) == [f"r{n}" for n in range(50)]
    assert errors == []
    assert (job.total, job.completed, job.failed) == (50, 50, 0)
    assert _usage(output) == job.input_tokens + job.output_tokens
    assert len(asked) == 50
    found = {name: _measured(inline.db, name) for name in (measures.WAIT, measures.ENGINE, measures.ENDED)}
    assert found == {"wait": {"generation": 1}, "engine": {MODEL: 50}, "ended": {"generation": 1}}


def test_a_response_that_needs_more_than_its_line_is_refused_and_its_neighbours_are_answered(
    db: Database, tmp_path: Path
) -> None:
    asked: list[Request] = []
    odd = {"previous_response_id": "resp_1", "conversation": {"id": "conv_1"}, "background": True}
    plain = {"previous_response_id": None, "conversation": None, "background": False}
    bodies = [*({name: value} for name, value in odd.items()), {}, {**plain, "store": True}]
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": RESPONSES, "body": {"model": MODEL, "input": f"{n}", **body}}
        for n, body in enumerate(bodies)
    ]

    with running(db, tmp_path, FakeEngine((MODEL,), fault=asked.append)) as inline:
        (job,) = inline.drain(inline.submit(jsonl(lines), endpoint=RESPONSES))
        output, errors = inline.results(job)

    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, 2, 3)
    assert _ids(output) == ["r3", "r4"]
    refused = [line["response"] for line in errors]
    assert [answer["status_code"] for answer in refused] == [400] * 3
    assert [answer["body"]["error"]["param"] for answer in refused] == list(odd)
    assert {answer["body"]["error"]["code"] for answer in refused} == {"unsupported_parameter"}
    assert [request.body["store"] for request in asked] == [False, False]


def test_store_parameter_is_not_sent_to_engine(db: Database, tmp_path: Path) -> None:
    asked: list[Request] = []
    lines = [
        chat_line("kept", "a", store=True, metadata={"a": "b"}),
        chat_line("not", "b", store=False, metadata={"a": "b"}),
    ]

    with running(db, tmp_path, FakeEngine((MODEL,), fault=asked.append)) as inline:
        (job,) = inline.drain(inline.submit(jsonl(lines)))

    assert job.completed == 2
    assert sorted((sorted(request.body) for request in asked), key=len) == [
        ["messages", "model"],
        ["messages", "metadata", "model"],
    ]


def test_line_outcomes_are_counted(db: Database, tmp_path: Path) -> None:
    def judge(request: Request) -> Answer | None:
        too_long = "long" in str(request.body)
        return refusal(400, "Too long.", code="context_length_exceeded") if too_long else None

    with running(db, tmp_path, FakeEngine((MODEL,), fault=judge)) as inline:
        job_id = inline.submit(_batch(5) + jsonl([chat_line("l", "long"), chat_line("m", "long too")]))
        inline.drain(job_id)

    with db.read() as session:
        rows = session.execute(select(Outcome.name, Outcome.count).where(Outcome.job_id == job_id)).all()
    assert sorted(map(tuple, rows)) == [("error:context_length_exceeded", 2), ("stop", 5)]


def test_storage_outage_fails_no_line_and_loses_no_result(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, away = inline.storage.put, [40]

    def sometimes(path: str, data: bytes) -> None:
        if path.startswith("jobs/") and away[0] > 0:
            away[0] -= 1
            raise StorageUnavailable
        put(path, data)

    monkeypatch.setattr(DiskStorage, "put", lambda _self, path, data: sometimes(path, data))
    inline.gpu = replace(inline.gpu, timings=replace(Timings(), storage_retry=0.05))
    (job,) = inline.drain(inline.submit(_batch(50)))

    output, errors = inline.results(job)
    assert (job.state, len(output), errors) == (JobState.SUCCEEDED, 50, [])
    assert away == [0]


def test_shard_stops_requests_once_results_cannot_be_stored(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: Request) -> EngineBusy | None:
        return EngineBusy("full") if "hello 1" in str(request.body) else None

    def full(_self: DiskStorage, path: str, _data: bytes) -> None:
        raise StorageFull(path)

    with running(db, tmp_path, FakeEngine((MODEL,), fault=refuse)) as inline:
        job_id = inline.submit(_batch(2))
        monkeypatch.setattr(DiskStorage, "put", full)
        inline.until(lambda: inline.job(job_id).waiting_for == "disk")

        inline.until(lambda: not asyncio.all_tasks(inline.host.loop), timeout=Timings().engine_busy / 2)

        assert inline.job(job_id).state == JobState.RUNNING


def test_a_database_that_cannot_be_read_while_results_are_assembled_costs_the_job_nothing(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, busy = finishing._Finisher.run, [lifecycle.MAX_TRIES + 2]

    def sometimes(finisher: finishing._Finisher) -> None:
        if busy[0]:
            busy[0] -= 1
            raise DatabaseBusy
        run(finisher)

    monkeypatch.setattr(finishing._Finisher, "run", sometimes)
    inline.cpu, inline.gpu = (
        replace(one, timings=replace(Timings(), database_retry=0.02)) for one in (inline.cpu, inline.gpu)
    )
    (job,) = inline.drain(inline.submit(_batch(50)))

    output, errors = inline.results(job)
    assert (job.state, job.failed_attempts, len(output), errors) == (JobState.SUCCEEDED, 0, 50, [])
    assert busy == [0]


def test_results_that_storage_has_lost_fail_the_job_after_some_tries_and_a_retry_runs_everything(
    inline: InlineDeployment,
) -> None:
    job_id = inline.submit(_batch(50))
    inline.lose_messages = lambda task: task == Task.FINISH
    inline.until(lambda: inline.job(job_id).state == JobState.FINISHING)
    for path in inline.storage.list(f"jobs/{job_id}"):
        inline.storage.delete(path)
    inline.lose_messages = lambda _task: False

    (job,) = inline.drain(job_id)

    assert job.state == JobState.FAILED
    assert [error["code"] for error in job.errors or []] == ["results_lost"]
    assert (job.failed_attempts, job.completed) == (lifecycle.MAX_TRIES, 50)
    assert inline.results(job) == ([], [])

    (again,) = inline.drain(inline.submit(b"", input_path=job.input_path, retry_of=job_id))

    assert (again.state, again.total) == (JobState.SUCCEEDED, 50)
    assert _ids(inline.results(again)[0]) == [f"r{n}" for n in range(50)]


def test_a_job_that_cannot_be_planned_fails_after_some_tries(
    inline: InlineDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug, with a prompt in its message")

    monkeypatch.setattr("jobs.fleet.routing.route", broken)

    (job,) = inline.drain(inline.submit(_batch(5)))

    assert (job.state, job.failed_attempts) == (JobState.FAILED, lifecycle.MAX_TRIES)
    assert [error["code"] for error in job.errors or []] == ["internal_error"]
    assert "prompt" not in str(job.errors)


def test_output_line_has_the_shape_of_openai(inline: InlineDeployment) -> None:
    (job,) = inline.drain(inline.submit(_batch(1)))

    (line,) = inline.results(job)[0]
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert line["id"].startswith("batch_req_")
    assert line["response"]["status_code"] == 200
    assert line["response"]["request_id"].startswith("req_")
    assert line["response"]["body"]["object"] == "chat.completion"
    assert line["error"] is None


def test_events_and_audit_tell_each_transition_once(inline: InlineDeployment) -> None:
    job_id = inline.submit(_batch(3))
    inline.drain(job_id)
    inline.until(lambda: not _unsealed(inline.db))

    with inline.db.read() as session:
        told = [event.type for event in events.after(session, job_id, 0, 100)]
        moves = session.execute(select(Audit.source, Audit.destination).where(Audit.target == job_id)).all()
        verdict = audit.verify(session)
    assert told == ["job.created", "job.running", "job.finishing", "batch.completed"]
    assert len(moves) == len(set(moves)) == 4
    assert verdict.faults == ()


def test_bad_lines_fail_the_job_with_their_numbers_and_nothing_is_run(
    inline: InlineDeployment, asked: list[str]
) -> None:
    good = chat_line("a", "x")
    content = jsonl([good]) + b"\n{broken\n" + jsonl([good, {**chat_line("b", "y"), "url": "/v1/embeddings"}])

    (job,) = inline.drain(inline.submit(content))

    assert job.state == JobState.FAILED
    assert [(error["code"], error["line"]) for error in job.errors or []] == [
        ("invalid_json_line", 3),
        ("duplicate_custom_id", 4),
        ("invalid_url", 5),
    ]
    assert asked == []
    with inline.db.read() as session:
        assert session.scalar(select(func.count()).select_from(Shard)) == 0


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"\n\n \r\n", "empty_file"),
        (jsonl([chat_line("a", "x", model="nobody-has-this")]), "model_not_found"),
        (jsonl([chat_line("a", "x"), chat_line("b", "x", model="other")]), "model_mismatch"),
        (jsonl([chat_line("a", "x", stream=True)]), "streaming_unsupported"),
    ],
)
def test_unusable_input_fails_with_a_code(db: Database, tmp_path: Path, content: bytes, code: str) -> None:
    with running(db, tmp_path) as inline:
        inline.gpu.standing.models = (MODEL,)
        inline.gpu.heartbeat.announce()
        with db.write() as session:
            workers.store_models(session, {MODEL: False}, Queue.GENERATE)
        (job,) = inline.drain(inline.submit(content))

    assert job.state == JobState.FAILED
    assert [error["code"] for error in job.errors or []] == [code]


def test_missing_input_fails_with_openais_words(inline: InlineDeployment) -> None:
    (job,) = inline.drain(inline.submit(b"", input_path=None, input_file_id="file-gone"))

    assert job.errors == [
        {
            "code": "invalid_request",
            "line": None,
            "message": "Cannot find file file-gone, or your project does not have access to it.",
            "param": "file_id",
        }
    ]


def test_crlf_blank_lines_and_a_byte_order_mark_are_no_trouble(inline: InlineDeployment) -> None:
    lines = [json.dumps(chat_line(f"r{n}", "x")).encode() for n in range(20)]
    content = b"\xef\xbb\xbf" + b"\r\n\r\n\n".join(lines)

    (job,) = inline.drain(inline.submit(content))

    assert _ids(inline.results(job)[0]) == [f"r{n}" for n in range(20)]


def test_engine_errors_become_error_lines_and_the_job_completes(inline: InlineDeployment) -> None:
    content = jsonl([chat_line("a", "fine"), chat_line("b", "!500"), chat_line("c", "!html")])

    (job,) = inline.drain(inline.submit(content))

    output, errors = inline.results(job)
    assert job.state == JobState.SUCCEEDED
    assert _ids(output) == ["a"]
    assert {line["custom_id"]: (line["response"] or {}).get("status_code") for line in errors} == {"b": 500, "c": None}
    assert errors[1]["error"]["code"] == "engine_error"
    assert (job.completed, job.failed) == (1, 2)


def test_all_failed_batch_completes_without_an_output_file(inline: InlineDeployment) -> None:
    (job,) = inline.drain(inline.submit(jsonl([chat_line("a", "!reset")])))

    assert (job.state, job.output_file_id, job.failed) == (JobState.SUCCEEDED, None, 1)
    assert job.error_file_id is not None


def test_poison_that_kills_the_engine_costs_its_own_line_only(inline: InlineDeployment, asked: list[str]) -> None:
    content = jsonl([chat_line(f"r{n}", "!crash" if n == 11 else f"fine {n}") for n in range(40)])

    (job,) = inline.drain(inline.submit(content))

    output, errors = inline.results(job)
    assert len(output) == 39
    assert _ids(errors) == ["r11"]
    assert inline.engine.starts <= 1 + 4  # twice among others, twice isolated
    assert asked.count("!crash") == 4


def test_item_refused_twice_and_then_answered_succeeds(inline: InlineDeployment) -> None:
    content = jsonl([chat_line("a", "!flaky2 one"), chat_line("b", "!crash"), chat_line("c", "fine")])

    (job,) = inline.drain(inline.submit(content))

    assert sorted(_ids(inline.results(job)[0])) == ["a", "c"]  # type: ignore[type-var]


def test_busy_engine_delays_and_never_fails_a_line(db: Database, tmp_path: Path) -> None:
    refused: Counter[str] = Counter()

    def full(request: Request) -> EngineBusy | None:
        refused[request.request_id] += 1
        return EngineBusy("full", retry_after=0.0) if refused[request.request_id] <= 6 else None

    with running(db, tmp_path, FakeEngine((MODEL,), fault=full)) as inline:
        (job,) = inline.drain(inline.submit(_batch(4)))

    assert (job.completed, job.failed) == (4, 0)


def test_cancelled_job_returns_finished_lines_and_lists_unfinished_lines(
    db: Database, tmp_path: Path, asked: list[str]
) -> None:
    with running(db, tmp_path, FakeEngine((MODEL,), on_prompt=asked.append)) as inline:
        job_id = inline.submit(jsonl([chat_line(f"r{n}", "!hang" if n >= 8 else "x") for n in range(24)]))
        inline.until(lambda: len(asked) >= 16 and _committed(inline.db, job_id) >= 8)
        with inline.db.write() as session:
            ledger.cancel(session, job_id, actor="test")
        (job,) = inline.drain(job_id, timeout=6)

        output, errors = inline.results(job)
    assert job.state == JobState.CANCELLED
    assert _ids(output) == [f"r{n}" for n in range(8)]
    assert _ids(errors) == [f"r{n}" for n in range(8, 24)]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert (job.total, job.completed, job.failed) == (24, 8, 0)


def test_batch_cancelled_before_it_was_planned_names_every_line(inline: InlineDeployment, asked: list[str]) -> None:
    job_id = inline.submit(_batch(5))
    with inline.db.write() as session:
        ledger.cancel(session, job_id, actor="test")

    (job,) = inline.drain(job_id)

    assert job.state == JobState.CANCELLED
    assert _ids(inline.results(job)[1]) == [f"r{n}" for n in range(5)]
    assert asked == []


def test_expired_batch_has_openais_exact_lines_for_the_rest(inline: InlineDeployment) -> None:
    job_id = inline.submit(_batch(3), deadline=now() - 1)

    (job,) = inline.drain(job_id)

    assert job.state == JobState.EXPIRED
    assert [line["error"] for line in inline.results(job)[1]] == [
        {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
    ] * 3
    assert (job.completed, job.failed) == (0, 0)


def test_lost_messages_are_republished(inline: InlineDeployment) -> None:
    messages: Counter[str] = Counter()

    def first_of_each(task: str) -> bool:
        messages[task] += 1
        return messages[task] == 1

    inline.lose_messages = first_of_each
    (job,) = inline.drain(inline.submit(_batch(10)))

    assert job.completed == 10
    assert messages["plan"] >= 2


def test_messages_published_many_times_cost_no_second_answer(inline: InlineDeployment, asked: list[str]) -> None:
    job_id = inline.submit(_batch(30))
    (job,) = inline.drain(job_id)

    for _ in range(3):
        inline.publish("plan", "", [job_id])
        inline.publish("finish", "", [job_id])
        for n in range(4):
            inline.publish("run", "", [job_id, n])
    inline.drain(inline.submit(_batch(1, "after")))

    assert len(asked) == 31
    assert inline.job(job_id).output_file_id == job.output_file_id


def test_attempt_after_lost_lease_runs_only_missing_lines(inline: InlineDeployment, asked: list[str]) -> None:
    """A claim that died with half its lines committed: its zombie's late segment changes nothing."""
    job_id = _planned_only(inline, _batch(8))
    with inline.db.write() as session:
        zombie = shards.claim(session, job_id, 0, "dead-worker")
    assert zombie is not None
    half = shards.Tally(covered=0b1111, good=0b1111, output_tokens=40)
    inline.storage.put("half", b"".join(b'%d\t1\t{"custom_id":"r%d"}\n' % (n, n) for n in range(4)))
    with inline.db.write() as session:
        shards.commit(session, zombie, 0, "half", inline.storage.size("half"), half, last=False)

    inline.lose_messages = lambda _task: False
    (job,) = inline.drain(job_id)

    with pytest.raises(Exception, match="newer claim"), inline.db.write() as session:
        shards.commit(session, zombie, 1, "late", 1, shards.Tally(covered=0b11110000), last=True)
    assert _ids(inline.results(job)[0]) == [f"r{n}" for n in range(8)]
    assert len(asked) == 4


def test_line_that_kills_its_worker_is_named_and_given_up(inline: InlineDeployment, asked: list[str]) -> None:
    """Two lost leases without progress, then isolation mode; the line that was being tried each time is the one."""
    job_id = _planned_only(inline, _batch(8))
    with inline.db.write() as session:
        session.execute(
            update(Shard).where(Shard.job_id == job_id).values(stalls=2, isolated_line=3, isolated_attempts=2)
        )

    inline.lose_messages = lambda _task: False
    (job,) = inline.drain(job_id)

    output, errors = inline.results(job)
    assert len(output) == 7
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("r3", "worker_crashed")]


def test_retry_runs_only_failed_lines_with_overrides(inline: InlineDeployment, asked: list[str]) -> None:
    content = jsonl([chat_line(f"r{n}", "!500" if n % 3 == 0 else f"x {n}") for n in range(20)])
    (first,) = inline.drain(inline.submit(content))
    asked.clear()

    overrides = {"messages": [{"role": "user", "content": "again"}]}
    (second,) = inline.drain(
        inline.submit(b"", input_path=first.input_path, retry_of=first.id, payload={"overrides": overrides})
    )

    assert _ids(inline.results(second)[0]) == [f"r{n}" for n in range(0, 20, 3)]
    assert set(asked) == {"again"}
    assert inline.job(first.id).failed == first.failed


def test_retry_of_answers_that_were_cut_off_runs_these_alone_with_a_higher_limit(
    db: Database, tmp_path: Path, asked: list[str]
) -> None:
    def cut_off(request: Request) -> Answer | None:
        if "long" not in str(request.body) or "max_completion_tokens" in request.body:
            return None
        message = {"role": "assistant", "content": "so"}
        body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
        return Answer(200, json.dumps(body).encode())

    lines = [chat_line(f"r{n}", ("!500", "long", "x")[n % 3] + f" {n}") for n in range(12)]
    with running(db, tmp_path, FakeEngine((MODEL,), fault=cut_off, on_prompt=asked.append)) as inline:
        (first,) = inline.drain(inline.submit(jsonl(lines)))
        payload = {"which": "length", "overrides": {"max_completion_tokens": 4096}}
        (second,) = inline.drain(inline.submit(b"", input_path=first.input_path, retry_of=first.id, payload=payload))
        output, errors = inline.results(second)

    assert (_ids(output), errors) == ([f"r{n}" for n in range(1, 12, 3)], [])
    assert {line["response"]["body"]["choices"][0]["finish_reason"] for line in output} == {"stop"}


def test_identical_requests_are_computed_once_only_if_the_job_asks(inline: InlineDeployment, asked: list[str]) -> None:
    content = jsonl([chat_line(f"r{n}", "same") for n in range(6)])

    plain, deduped = inline.drain(inline.submit(content), inline.submit(content, payload={"dedupe": True}))

    assert len(asked) == 6 + 1
    output = inline.results(deduped)[0]
    assert [line.get("duplicate_of") for line in output] == [None] + ["r0"] * 5
    assert deduped.output_tokens == plain.output_tokens // 6
    assert _measured(inline.db, measures.ENGINE) == {MODEL: 6 + 1}


def test_small_project_is_not_starved_by_large_project(db: Database, tmp_path: Path) -> None:
    with running(db, tmp_path, FakeEngine((MODEL,), delay=0.02), shard_lines=1) as inline:
        large = inline.submit(_batch(200), project="large")
        inline.until(lambda: inline.job(large).state == JobState.RUNNING)
        small = inline.submit(_batch(4), project="small")
        inline.drain(small)

        assert inline.job(large).state == JobState.RUNNING


def _planned_only(inline: InlineDeployment, content: bytes) -> str:
    """Create a job whose shards are not published yet."""
    inline.lose_messages = lambda task: task == "run"
    job_id = inline.submit(content)
    inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
    return job_id


def _unsealed(db: Database) -> bool:
    with db.read() as session:
        return audit.unsealed(session)


def _committed(db: Database, job_id: str) -> int:
    with db.read() as session:
        covered = session.scalars(select(Segment.covered).where(Segment.job_id == job_id)).all()
    return sum(int.from_bytes(bitmap, "little").bit_count() for bitmap in covered)

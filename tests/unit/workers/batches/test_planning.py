"""Planning: what is cut, what is refused, and what a second planner finds."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from jobs.batches import lines
from jobs.batches.batches import BatchPayload
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, StorageFull, StorageUnavailable, TookTooLong
from jobs.files.tables import File
from jobs.fleet import enqueued_tokens, routing, workers
from jobs.fleet.models_file import Models
from jobs.ledger import ledger, shards
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Outbox, Segment, Shard
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, WeightedModel
from jobs.registry.tables import Alias
from jobs.requests.token_estimates import input_tokens
from jobs.security import keys
from jobs.security.tables import Project
from jobs.settings import Settings
from tests.support import sample_jobs
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from workers.batches.planning import Planner
from workers.lifecycle import plan
from workers.runtime.context import Context, WorkerStatus
from workers.runtime.heartbeat import Heartbeat

EMBED = "/v1/embeddings"


class Harness:
    """A planner's process, without the process."""

    def __init__(self, db: Database, folder: Path, **settings: Any) -> None:
        config = Settings(data_dir=folder, database_url=db.url, **{"min_free_bytes": 0, **settings})
        self.db, self.storage = db, DiskStorage(folder / "files")
        heartbeat = Heartbeat(db, _nobody, heartbeat_seconds=60, stop=threading.Event())
        self.context = Context(
            config, db, self.storage, "planner", threading.Event(), WorkerStatus(), heartbeat, Models(config)
        )
        with db.write() as session:
            self.project = keys.ensure_project(session, "p").id
            workers.store_models(session, {MODEL: False, "far-model": True}, Queue.GENERATE)

    def submit(self, content: bytes, **fields: Any) -> str:
        self.storage.put("files/in", content)
        facts = {"project_id": self.project, "input_path": "files/in", "created_at": now(), "deadline": now() + 60}
        return sample_jobs.submitted(self.db, **{**facts, **fields}).id

    def plan(self, content: bytes, **fields: Any) -> Job:
        job_id = self.submit(content, **fields)
        plan(self.context, job_id)
        return sample_jobs.job(self.db, job_id)

    def pending(self, job_id: str) -> Outbox:
        """Return the one pending message of the job."""
        with self.db.read() as session:
            return session.scalars(select(Outbox).where(Outbox.job_id == job_id)).one()

    def shards(self, job: Job) -> list[Shard]:
        with self.db.read() as session:
            return list(session.scalars(select(Shard).where(Shard.job_id == job.id).order_by(Shard.n)))


def _nobody() -> Any:
    from jobs.fleet.tables import Worker

    return Worker(id="planner", models=[], state="ready", restarts=0, slots=1)


@pytest.fixture
def harness(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(shards, "MAX_BYTES", 2000)
    return Harness(db, tmp_path, shard_lines=4, batch_max_lines=50)


def _codes(job: Job) -> list[str]:
    return [error["code"] for error in job.errors or []]


def test_shards_cover_all_lines_in_order(harness: Harness) -> None:
    content = jsonl([chat_line(f"r{n}", "x" * (n * 40)) for n in range(30)])

    job = harness.plan(content)

    cut = harness.shards(job)
    texts = [line for shard in cut for line in lines.split(content[shard.offset : shard.offset + shard.length])]
    assert job.state == JobState.RUNNING
    assert [json.loads(text)["custom_id"] for text in texts] == [f"r{n}" for n in range(30)]
    assert [shard.first_line for shard in cut] == [sum(s.lines for s in cut[:n]) for n in range(len(cut))]
    assert all(shard.lines <= 4 and (shard.length <= 2000 or shard.lines == 1) for shard in cut)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"prompt": ["a"] * 2048, "max_tokens": 5, "n": 2}, 20_480),
        ({"prompt": [1, 2, 3], "max_tokens": "5"}, 5),
        ({"prompt": "a", "max_tokens": 5.0, "max_output_tokens": 1}, 5),
        ({"prompt": "a", "max_tokens": [], "n": {"n": 3}}, 1024),
    ],
)
def test_planned_output_follows_prompts_and_bounds(harness: Harness, fields: dict[str, Any], tokens: int) -> None:
    url = "/v1/completions"
    line = {"custom_id": "r", "method": "POST", "url": url, "body": {"model": MODEL, **fields}}

    job = harness.plan(jsonl([line]), endpoint=url)

    assert [shard.max_output_tokens for shard in harness.shards(job)] == [tokens]


def test_each_shard_has_single_outbox_message(harness: Harness) -> None:
    job = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(9)]))

    assert sample_jobs.outbox_messages(harness.db, job.id) == [("run", 0), ("run", 1), ("run", 2)]


@pytest.mark.parametrize(("limit", "state", "cut"), [(0, JobState.RUNNING, 120), (10, JobState.FAILED, 0)])
def test_shards_of_several_transactions_run_or_are_removed(
    db: Database, tmp_path: Path, limit: int, state: JobState, cut: int
) -> None:
    harness = Harness(db, tmp_path, shard_lines=1, project_max_queued_tokens=limit)

    job = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(120)]))

    assert job.state == state
    assert [(shard.n, shard.first_line, shard.lines) for shard in harness.shards(job)] == [
        (n, n, 1) for n in range(cut)
    ]
    assert sample_jobs.outbox_messages(db, job.id) == [("run", n) for n in range(cut)]


@pytest.mark.parametrize(
    ("settings", "fields", "content", "code"),
    [
        ({"batch_max_lines": 3}, {}, jsonl([chat_line(f"r{n}", "x") for n in range(4)]), "too_many_requests"),
        ({"batch_max_bytes": 50}, {}, jsonl([chat_line("r", "x")]), "file_too_large"),
        ({"project_max_queued_tokens": 10}, {}, jsonl([chat_line("r", "x")]), "token_limit_exceeded"),
        (
            {"batch_max_lines": 3},
            {"endpoint": EMBED, "kind": "embedding"},
            jsonl(
                [{"custom_id": "r", "method": "POST", "url": EMBED, "body": {"model": MODEL, "input": list("abcd")}}]
            ),
            "too_many_inputs",
        ),
        ({}, {}, jsonl([chat_line("r", "x", model="far-model")]), "external_model_not_allowed"),
        ({}, {}, jsonl([chat_line("r", "x", model="all-minilm-l6-v2")]), "model_not_supported"),
    ],
)
def test_limits_refuse_with_a_code(
    db: Database, tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any], content: bytes, code: str
) -> None:
    harness = Harness(db, tmp_path, **settings)

    job = harness.plan(content, **fields)

    assert (job.state, _codes(job)) == (JobState.FAILED, [code])
    assert harness.shards(job) == []
    assert sample_jobs.outbox_messages(db, job.id) == []


def test_line_that_is_too_long_is_refused(harness: Harness) -> None:
    job = harness.plan(jsonl([chat_line("r", "x" * lines.MAX_LINE_BYTES)]))

    assert (job.state, _codes(job)) == (JobState.FAILED, ["line_too_long"])
    assert harness.shards(job) == []


def test_concurrent_plans_do_not_exceed_token_limit(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = jsonl([chat_line("r", "x" * 1000)])
    harness = Harness(db, tmp_path, project_max_queued_tokens=input_tokens(len(content)))
    with db.write() as session:
        facts = {"purpose": "batch", "filename": "a", "path": "files/in", "created_at": now()}
        session.add(File(id="file-a", project_id=harness.project, bytes=len(content), **facts))
    jobs = [harness.submit(content, input_file_id="file-a") for _ in range(2)]
    both = threading.Barrier(2)
    asked = enqueued_tokens.queued_bytes

    def together(*arguments: Any) -> int:
        found = asked(*arguments)
        with suppress(threading.BrokenBarrierError):  # the other one waits for us
            both.wait(1)
        return found

    monkeypatch.setattr(enqueued_tokens, "queued_bytes", together)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda job_id: plan(harness.context, job_id), jobs))

    ended = sorted((sample_jobs.job(db, job_id) for job_id in jobs), key=lambda job: job.state)
    assert [(job.state, _codes(job)) for job in ended] == [
        (JobState.FAILED, ["token_limit_exceeded"]),
        (JobState.RUNNING, []),
    ]


def test_project_may_allow_models_outside_the_house(harness: Harness) -> None:
    with harness.db.write() as session:
        session.get_one(Project, harness.project).allow_external = True

    assert harness.plan(jsonl([chat_line("r", "x", model="far-model")])).state == JobState.RUNNING


def test_errors_quote_a_long_model_in_short(harness: Harness) -> None:
    job = harness.plan(jsonl([chat_line(f"r{n}", "x", model=f"{n}" + "x" * 20_000) for n in range(30)]))

    assert set(_codes(job)) == {"model_not_found", "model_mismatch"}
    assert len(json.dumps(job.errors)) < 30_000


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ({**chat_line("r", "x"), "method": "GET"}, "invalid_method", "method"),
        ({**chat_line("r", "x"), "custom_id": None}, "missing_required_parameter", "custom_id"),
        ({**chat_line("r", "x"), "custom_id": 5}, "invalid_type", "custom_id"),
        ({**chat_line("r", "x"), "body": "x"}, "invalid_type", "body"),
        (chat_line("r", "x", messages=None), "invalid_request", "body.messages"),
        (chat_line("r", "x", model=""), "model_not_found", "body.model"),
        (chat_line("r", "x", model=None), "invalid_request", "body.model"),
        (chat_line("r", "x", model=5), "invalid_type", "body.model"),
        (chat_line("r", "x", stream="yes"), "invalid_type", "body.stream"),
        ({**chat_line("r", "x"), "body": [1]}, "invalid_type", "body"),
        (["r"], "invalid_json_line", None),
        (None, "invalid_json_line", None),
        ("r", "invalid_json_line", None),
        (1, "invalid_json_line", None),
    ],
)
def test_invalid_request_line_is_refused_with_code_and_param(
    harness: Harness, line: Any, code: str, param: str | None
) -> None:
    job = harness.plan(jsonl([line]))

    assert [(error["code"], error["line"], error["param"]) for error in job.errors or []] == [(code, 1, param)]


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens", "best_of"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e309", "-1", "true"])
def test_invalid_count_is_refused_or_estimated_as_if_missing(harness: Harness, name: str, value: str) -> None:
    line = json.dumps(chat_line("r", "x", **{name: "COUNT"})).replace('"COUNT"', value)

    usual, job = harness.plan(jsonl([chat_line("r", "x")])), harness.plan(line.encode())

    [usual_tokens], tokens = ([shard.max_output_tokens for shard in harness.shards(each)] for each in (usual, job))
    refused = [error["line"] for error in job.errors or []]
    assert (refused, tokens) in (([1], []), ([], [usual_tokens]))


@pytest.mark.parametrize(
    ("content", "last"),
    [(b"{\n" * 3000, 1000), (jsonl([chat_line("same", "x")] * 1500), 1001)],  # the first is nobody's duplicate
)
def test_errors_are_named_up_to_a_thousand(db: Database, tmp_path: Path, content: bytes, last: int) -> None:
    job = Harness(db, tmp_path).plan(content)

    assert len(job.errors or []) == 1000
    assert (job.errors or [])[-1]["line"] == last


def test_second_planner_starts_from_nothing(harness: Harness) -> None:
    """The first died after it had cut shards of its own; none of them is left."""
    job_id = harness.submit(jsonl([chat_line(f"r{n}", "x") for n in range(4)]))
    dead = sample_jobs.claim_job(harness.db, job_id, Task.PLAN)
    with harness.db.write() as session:
        shards.cut(session, dead, Queue.GENERATE, sample_jobs.cuts(job_id, [1] * 7))
    with harness.db.write() as session:
        assert ledger.release(session, job_id, dead.epoch)

    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert [(shard.n, shard.lines) for shard in harness.shards(job)] == [(0, 4)]
    assert sample_jobs.outbox_messages(harness.db, job_id) == [("run", 0)]


def test_planner_that_was_cancelled_meanwhile_changes_nothing(harness: Harness) -> None:
    job_id = harness.submit(jsonl([chat_line("r", "x")]))
    with harness.db.write() as session:
        ledger.cancel(session, job_id, actor="key:test")

    plan(harness.context, job_id)

    assert sample_jobs.state(harness.db, job_id) == JobState.CANCELLING


def test_planner_that_lost_its_claim_meanwhile_leaves_the_job_to_its_successor(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit(jsonl([chat_line("r", "x")]))
    asked = routing.route

    def slowly(*arguments: Any, **named: Any) -> routing.Route:
        with harness.db.write() as session:
            assert ledger.release(session, job_id, sample_jobs.job(harness.db, job_id).epoch)
        sample_jobs.claim_job(harness.db, job_id, Task.PLAN, "successor")
        return asked(*arguments, **named)

    monkeypatch.setattr(routing, "route", slowly)
    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert (job.state, job.worker_id, job.failed_attempts) == (JobState.QUEUED, "successor", 0)
    assert harness.shards(job) == []


def test_stopping_planner_releases_job_immediately(harness: Harness) -> None:
    job_id = harness.submit(jsonl([chat_line("r", "x")]))
    harness.context.heartbeat.stop_all()

    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert (job.state, job.worker_id, job.waiting_for, job.lost_leases) == (JobState.QUEUED, None, None, 0)
    assert harness.pending(job_id).due_at <= now()


def test_job_waits_unplanned_while_the_disk_is_nearly_full(db: Database, tmp_path: Path) -> None:
    job = Harness(db, tmp_path, min_free_bytes=1 << 62).plan(jsonl([chat_line("r", "x")]))
    assert (job.state, job.waiting_for, job.worker_id) == (JobState.QUEUED, "disk", None)

    plan(Harness(db, tmp_path).context, job.id)

    assert sample_jobs.state(db, job.id) == JobState.RUNNING


@pytest.mark.parametrize("error", [StorageFull, StorageUnavailable])
def test_storage_that_fails_while_a_retry_copies_its_lines_delays_the_planning(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    first = harness.plan(jsonl([chat_line("r", "x")]))

    def fails(_path: str) -> None:
        raise error

    monkeypatch.setattr(harness.storage, "writer", fails)
    job_id = sample_jobs.submitted(harness.db, project_id=first.project_id, input_path="files/in", retry_of=first.id).id
    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert (job.state, job.waiting_for, job.failed_attempts) == (JobState.QUEUED, "disk", 0)
    assert harness.pending(job_id).due_at > now() + 5


@pytest.mark.parametrize(("error", "failed_attempts"), [(DatabaseBusy, 0), (TookTooLong, 1)])
def test_a_database_that_cannot_be_read_for_a_while_is_not_the_jobs_fault(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: type[Exception], failed_attempts: int
) -> None:
    """A question that always takes too long is."""

    def busy(_self: Planner) -> None:
        raise error

    monkeypatch.setattr(Planner, "read_input", busy)
    job_id = sample_jobs.submitted(harness.db, input_path="files/in").id
    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert (job.state, job.waiting_for, job.failed_attempts, job.worker_id) == (
        JobState.QUEUED,
        None,
        failed_attempts,
        None,
    )
    assert now() < harness.pending(job_id).due_at < now() + harness.context.config.redelivery_seconds + 1


def test_retry_of_a_job_that_was_never_run_reads_its_whole_input(harness: Harness) -> None:
    first = harness.submit(jsonl([chat_line(f"r{n}", "x") for n in range(3)]))
    with harness.db.write() as session:
        ledger.cancel(session, first, actor="key:test")

    retry = sample_jobs.submitted(harness.db, project_id=harness.project, input_path="files/in", retry_of=first).id
    plan(harness.context, retry)

    job = sample_jobs.job(harness.db, retry)
    assert (job.state, job.total, job.input_path) == (JobState.RUNNING, 3, "files/in")


def test_retry_of_unrun_retry_reads_its_intended_lines(harness: Harness) -> None:
    first = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(3)])).id
    sample_jobs.answer(harness.db, sample_jobs.claim_shard(harness.db, first), range(3), bad=[1], last=True)
    facts = {"project_id": harness.project, "input_path": "files/in"}
    second = sample_jobs.submitted(harness.db, retry_of=first, **facts).id
    with harness.db.write() as session:
        ledger.cancel(session, second, actor="key:test")

    third = sample_jobs.submitted(harness.db, retry_of=second, **facts).id
    plan(harness.context, third)

    job = sample_jobs.job(harness.db, third)
    assert (job.state, job.total, job.input_path) == (JobState.RUNNING, 1, f"jobs/{third}/input-1.jsonl")


def _run(harness: Harness) -> str:
    """Run a job of six lines in two shards: line 1 failed, 2 and 4 were cut off, 5 has no result."""
    job_id = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(6)])).id
    for n, good, cut_off in ((0, 0b1101, 0b0100), (1, 0b01, 0b01)):
        claim = sample_jobs.claim_shard(harness.db, job_id, n)
        covered = 0b1111 if n == 0 else 0b01
        with harness.db.write() as session:
            shards.commit(session, claim, 0, "path", 9, shards.Tally(covered, good, cut_off), last=n == 0)
    return job_id


@pytest.mark.parametrize(
    ("which", "names"),
    [("failed", ["r1", "r5"]), ("length", ["r2", "r4"]), ("all", [f"r{n}" for n in range(6)])],
)
def test_retry_reads_selected_lines(harness: Harness, which: str, names: list[str]) -> None:
    first = _run(harness)

    retry = sample_jobs.submitted(
        harness.db, project_id=harness.project, input_path="files/in", retry_of=first, payload={"which": which}
    ).id
    plan(harness.context, retry)

    job = sample_jobs.job(harness.db, retry)
    assert (job.state, job.total) == (JobState.RUNNING, len(names))
    with harness.storage.reader(job.input_path or "") as handle:
        assert [json.loads(line)["custom_id"] for line in handle] == names


def test_retry_of_a_retry_that_was_never_run_reads_the_lines_that_the_first_retry_was_to_run(harness: Harness) -> None:
    first = _run(harness)
    facts = {"project_id": harness.project, "input_path": "files/in"}
    second = sample_jobs.submitted(harness.db, retry_of=first, payload={"which": "length"}, **facts).id
    with harness.db.write() as session:
        ledger.cancel(session, second, actor="key:test")

    third = sample_jobs.submitted(harness.db, retry_of=second, **facts).id
    plan(harness.context, third)

    assert sample_jobs.job(harness.db, third).total == 2


@pytest.mark.parametrize("again", [False, True], ids=["a job", "a retry"])
@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_retry_is_refused_if_lines_to_run_are_unknown(harness: Harness, again: bool, state: JobState) -> None:
    """Of what has failed, all is; but what a retry was to read is gone with the rest."""
    facts: dict[str, Any] = {"project_id": harness.project, "input_path": "files/in"}
    origin = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(3)])).id
    facts["retry_of"] = first = sample_jobs.submitted(harness.db, retry_of=origin, **facts).id if again else origin
    if again:
        plan(harness.context, first)
    with harness.db.write() as session:
        session.execute(update(Job).where(Job.id == first).values(state=state))
        session.execute(delete(Shard).where(Shard.job_id == first))  # retention begins so
        answered = {"path": "", "length": 0, "covered": b"\1", "good": b"\1", "created_at": 1.0}
        session.add(Segment(job_id=first, n=0, epoch=1, seq=0, **answered))

    retry = sample_jobs.submitted(harness.db, **facts).id
    plan(harness.context, retry)

    job = sample_jobs.job(harness.db, retry)
    if state == JobState.FAILED and not again:
        assert (job.state, job.total) == (JobState.RUNNING, 3)
    else:
        assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["results_expired"])
        assert first in (job.errors or [])[0]["message"]


@pytest.mark.parametrize("gone", ["the job that it retries", "what that was to retry"])
def test_a_retry_of_which_retention_has_removed_the_origin_runs_no_line(harness: Harness, gone: str) -> None:
    facts: dict[str, Any] = {"project_id": harness.project, "input_path": "files/in", "payload": {"which": "failed"}}
    origin = harness.plan(jsonl([chat_line(f"r{n}", "x") for n in range(3)])).id
    never_ran = sample_jobs.submitted(harness.db, retry_of=origin, **facts).id
    retry = sample_jobs.submitted(harness.db, retry_of=never_ran, **facts).id
    with harness.db.write() as session:
        session.execute(delete(Job).where(Job.id == (never_ran if gone == "the job that it retries" else origin)))

    plan(harness.context, retry)

    job = sample_jobs.job(harness.db, retry)
    assert (job.state, [error["code"] for error in job.errors or []]) == (JobState.FAILED, ["results_expired"])


def test_missing_input_bytes_fail_job(harness: Harness) -> None:
    job_id = harness.submit(jsonl([chat_line("r", "x")]), input_file_id="file-gone")
    harness.storage.delete("files/in")

    plan(harness.context, job_id)

    job = sample_jobs.job(harness.db, job_id)
    assert job.state == JobState.FAILED
    assert "Cannot find file file-gone" in (job.errors or [])[0]["message"]


def test_endpoint_that_was_never_heard_of_delays_the_planning(db: Database, tmp_path: Path) -> None:
    harness = Harness(db, tmp_path, engine_urls=("http://127.0.0.1:9/v1",))

    job = harness.plan(jsonl([chat_line("r", "x", model="unknown-model")]))

    assert (job.state, job.waiting_for, job.worker_id) == (JobState.QUEUED, "model", None)
    assert harness.pending(job.id).due_at > now() + 2


def test_models_file_that_was_never_right_delays_the_planning(db: Database, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {x: {engine: warp}}")
    harness = Harness(db, tmp_path)

    job = harness.plan(jsonl([chat_line("r", "x")]))

    assert (job.state, job.waiting_for, job.failed_attempts) == (JobState.QUEUED, "model", 0)
    assert harness.pending(job.id).due_at > now() + 2


def test_models_file_that_has_become_wrong_counts_as_it_was(
    db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: {far: {source: {urls: [http://localhost:1]}, engine: http, queue: gpu.far}}")
    harness = Harness(db, tmp_path)
    harness.context.models.now()
    file.write_text("models: {x: {engine: warp}}")

    jobs = [harness.plan(jsonl([chat_line("r", "x", model="far")])) for _ in range(2)]

    assert [(job.state, job.queue) for job in jobs] == [(JobState.RUNNING, "gpu.far")] * 2
    assert [record.message for record in caplog.records].count("models_file.rejected") == 1


def test_alias_of_a_configured_model_goes_to_its_queue(db: Database, tmp_path: Path) -> None:
    harness = Harness(db, tmp_path, openai_aliases=True)
    body = {"model": "text-embedding-3-small", "input": "x"}
    content = jsonl([{"custom_id": "r", "method": "POST", "url": EMBED, "body": body}])

    job = harness.plan(content, endpoint=EMBED, kind="embedding")

    assert (job.state, job.queue, job.model) == (JobState.RUNNING, Queue.EMBED, "text-embedding-3-small")


NAME = "support-bot"
CANARY = jsonl([chat_line(f"r{n}", "x", model=NAME) for n in range(3)])


def move(harness: Harness, *targets: WeightedModel) -> None:
    """Let the alias of the project stand for these targets."""
    with harness.db.write() as session:
        alias = aliases.find(session, NAME, harness.project, lock=True)
        alias = alias or Alias(project_id=harness.project, name=NAME, created_at=now(), created_by="test")
        aliases.move(session, alias, AliasRouting(targets), "update", actor="test")


def test_batch_draws_its_model_by_its_id_at_planning(harness: Harness) -> None:
    with harness.db.write() as session:
        workers.store_models(session, {"new-model": False}, Queue.GENERATE)
    move(harness, WeightedModel(MODEL, 50), WeightedModel("new-model", 50))

    ids = [f"batch_{n:02}" for n in range(24)]
    drawn = {job_id: harness.plan(CANARY, id=job_id).model for job_id in ids}

    assert set(drawn.values()) == {MODEL, "new-model"}
    moved = AliasRouting((WeightedModel(MODEL, 50), WeightedModel("new-model", 50)))
    assert drawn == {i: moved.model_at(aliases.point_of(harness.project, NAME, i)) for i in ids}


def test_planned_batch_keeps_its_model_after_a_move(harness: Harness) -> None:
    move(harness, WeightedModel(MODEL, 100))
    job = harness.plan(CANARY)
    move(harness, WeightedModel("far-model", 100))

    plan(harness.context, job.id)

    assert sample_jobs.job(harness.db, job.id).model == MODEL


def test_job_that_was_made_with_a_model_keeps_it(harness: Harness) -> None:
    move(harness, WeightedModel("far-model", 100))

    assert harness.plan(CANARY, model=MODEL).model == MODEL


@given(st.lists(st.binary(max_size=30).filter(lambda raw: b"\n" not in raw), max_size=12), st.integers(4, 12))
def test_reading_never_holds_more_than_the_limit_and_misses_no_line(raws: list[bytes], limit: int) -> None:
    content = b"\n".join(raws)

    found = list(lines.read(io.BytesIO(content), limit))

    assert all(len(text.raw or b"") <= limit for text in found)
    kept = [content[text.offset : text.offset + text.length] for text in found]
    told = [(raw, raw.removeprefix(b"" if number else lines.BOM)) for number, raw in enumerate(raws)]
    assert [line.removesuffix(b"\n") for line in kept] == [raw for raw, text in told if text.strip(b" \t\r\n")]


@given(st.lists(st.text("a{", min_size=1, max_size=20).map(str.encode), max_size=12), st.integers(4, 12))
def test_lines_are_identical_before_and_after_writing(raws: list[bytes], limit: int) -> None:
    content = b"".join(raw + b"\n" for raw in raws)

    assert list(lines.number_lines(raws, limit)) == list(lines.read(io.BytesIO(content), limit))


def test_a_retry_waits_for_the_model_that_it_asks_instead(harness: Harness) -> None:
    payload = BatchPayload(overrides={"model": "far-model"}).model_dump(mode="json")

    refused = harness.plan(jsonl([chat_line("r", "x")]), payload=payload)
    with harness.db.write() as session:
        workers.store_models(session, {"far-model": False}, Queue.GENERATE)
    planned = harness.plan(jsonl([chat_line("r", "x")]), payload=payload)

    assert (refused.state, len(refused.errors or [])) == (JobState.FAILED, 1), "as if its lines had named it"
    assert (planned.state, planned.model) == (JobState.RUNNING, "far-model")

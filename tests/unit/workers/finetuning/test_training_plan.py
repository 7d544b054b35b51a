"""Planning of fine-tuning jobs: what the files are examined for, what is stored, and what is refused."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.finetuning import datasets, examination, jobs, training_events
from jobs.finetuning.examination import DatasetFindings, ExaminationTask
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import Dataset, FinetunePlan
from jobs.fleet.models_file import Models
from jobs.fleet.tables import Worker
from jobs.ledger import kinds, ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.platform.locks import hold_exclusively
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.security import keys
from jobs.settings import Settings
from tests.support import sample_jobs, tiny_llama
from workers.finetuning import examination as child
from workers.finetuning import training_plan
from workers.finetuning.examination_child import RowChecker
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context, WorkerStatus
from workers.runtime.heartbeat import ClaimHandle, Heartbeat

USER = {"role": "user", "content": "Hi"}


def row(n: int, **more: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": f"Answer {n}."}], **more}


def preference(n: int) -> dict[str, Any]:
    return {
        "input": {"messages": [USER]},
        "preferred_output": [{"role": "assistant", "content": f"Yes {n}."}],
        "non_preferred_output": [{"role": "assistant", "content": f"No {n}."}],
    }


def jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in rows)


def _nobody() -> Worker:
    return Worker(id="planner", models=[], state="ready", restarts=0, slots=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write(tmp_path_factory.mktemp("base"))


class Planning:
    """A process that plans, without the process."""

    def __init__(self, db: Database, folder: Path, base: Path) -> None:
        (folder / "models.yaml").write_text(f"models:\n  tiny: {{source: {{path: {base}}}, engine: vllm}}\n")
        config = Settings(data_dir=folder, database_url=db.url, min_free_bytes=0)
        self.db, self.storage = db, DiskStorage(folder / "files")
        stop = threading.Event()
        heartbeat = Heartbeat(db, _nobody, heartbeat_seconds=60, stop=stop)
        self.context = Context(config, db, self.storage, "planner", stop, WorkerStatus(), heartbeat, Models(config))
        with db.write() as session:
            self.project = keys.ensure_project(session, "p").id

    def file(self, name: str, content: bytes) -> File:
        self.storage.put(f"files/{name}", content)
        file = File(
            id=name, project_id=self.project, purpose="fine-tune", filename=name, bytes=len(content),
            path=f"files/{name}", created_at=1.0,
        )  # fmt: skip
        with self.db.write() as session:
            session.add(file)
        return file

    def submit(self, content: bytes, validated: bytes | None = None, **asked: Any) -> str:
        training = self.file("file-t", content)
        if validated is not None:
            asked["validation_file"] = self.file("file-v", validated).id
        payload = FineTuning.model_validate({"model": "tiny", "base": "tiny", "result": "ft:r", "seed": 1, **asked})
        facts: dict[str, Any] = {"job_id": "ftjob-1", "project_id": self.project, "actor": "test"}
        with self.db.write() as session:
            return jobs.submit(session, payload, training_file=training, **facts).id

    def plan(self, *content: bytes, hold: ClaimHandle | None = None, **asked: Any) -> Job:
        job_id = self.submit(*content, **asked)
        self.run(job_id, hold)
        return sample_jobs.job(self.db, job_id)

    def run(self, job_id: str, hold: ClaimHandle | None = None) -> None:
        claim = sample_jobs.claim_job(self.db, job_id, Task.PLAN)
        training_plan.plan(self.context, claim, hold or ClaimHandle(job_id, claim.epoch))

    def events(self) -> list[tuple[str, str]]:
        with self.db.read() as session:
            told = training_events.newest(session, "ftjob-1", before=None, limit=50)
        return [(event.level, event.message) for event in told]

    def snapshot(self, role: str) -> list[Any]:
        """Return the rows of a snapshot, whose bytes must have the hash in its name."""
        with self.db.read() as session:
            data = datasets.data_of_job(session, "ftjob-1")[role]
            dataset = session.get_one(Dataset, data.sha256)
        with self.storage.reader(dataset.location) as handle:
            content = handle.read()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (dataset.sha256, dataset.bytes)
        found = [json.loads(line) for line in content.splitlines()]
        assert len(found) == data.rows
        return found


@pytest.fixture
def planner(db: Database, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Planning:
    """Return a planner that examines files in this process: a child takes seconds to load its libraries."""

    def examine(asked: ExaminationTask, _stopped: Callable[[], bool] = lambda: False) -> DatasetFindings:
        findings = child.examine(asked, lambda load, _limits: RowChecker(load))
        return examination.decode(json.dumps(asdict(findings)).encode())

    monkeypatch.setattr(examination, "examine", examine)
    return Planning(db, tmp_path, base)


@pytest.fixture
def real_planner(db: Database, tmp_path: Path, base: Path) -> Planning:
    """Return a planner that examines files in a child process."""
    return Planning(db, tmp_path, base)


def errors_of(job: Job) -> list[tuple[str, int | None, str]]:
    assert job.state == JobState.FAILED
    return [(error["code"], error["line"], error["param"]) for error in job.errors or []]


@pytest.mark.verify
def test_files_are_examined_in_a_process_of_their_own(real_planner: Planning) -> None:
    rows = [row(n) for n in range(10)]

    job = real_planner.plan(jsonl(rows))

    assert job.state == JobState.RUNNING
    assert real_planner.snapshot(datasets.TRAINING) == rows


@pytest.mark.dialects
def test_plan_stores_parameters_snapshot_and_single_shard(planner: Planning) -> None:
    rows = [row(n) for n in range(12)]
    content = b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n\r\n")

    job = planner.plan(content, hyperparameters={"batch_size": 5, "n_epochs": 2})

    assert (job.state, job.total, job.queue) == (JobState.RUNNING, 1, Queue.FINETUNE)
    with planner.db.read() as session:
        plan = session.get_one(FinetunePlan, job.id)
        shards = session.scalars(select(Shard).where(Shard.job_id == job.id)).all()
        messages = session.execute(select(Outbox.task, Outbox.queue)).all()
    assert (plan.n_epochs, plan.batch_size, plan.learning_rate_multiplier, plan.steps) == (2, 5, 1.0, 6)
    assert (plan.rows, plan.validation_rows, len(shards)) == (12, 0, 1)
    assert plan.tokens > 12 * len("Answer 1.")
    assert [tuple(message) for message in messages] == [("run", Queue.FINETUNE)]
    assert planner.snapshot(datasets.TRAINING) == rows


@pytest.mark.parametrize(("peft", "warned"), [("lora", 1), ("full", 0)])
def test_a_base_that_is_not_served_is_trained_with_a_word_on_where_its_adapter_is(
    planner: Planning, peft: str, warned: int
) -> None:
    config = planner.context.config.model_copy(update={"vllm_enabled": False})
    planner.context = replace(planner.context, config=config, models=Models(config))

    job = planner.plan(jsonl([row(n) for n in range(12)]), peft=peft)

    assert job.state == JobState.RUNNING
    warnings = [message for level, message in planner.events() if level == "warn" and "--no-vllm" in message]
    assert len(warnings) == warned


def test_auto_stands_for_numbers_by_the_size_of_the_data(planner: Planning) -> None:
    planner.plan(jsonl([row(n) for n in range(120)]))

    with planner.db.read() as session:
        plan = session.get_one(FinetunePlan, "ftjob-1")
    assert (plan.n_epochs, plan.batch_size, plan.steps) == (3, 2, 180)


def test_every_bad_line_of_both_files_is_named(planner: Planning) -> None:
    bad = [*(row(n) for n in range(10)), {"messages": []}, row(11, colour=1)]
    long = {"messages": [USER, {"role": "assistant", "content": "x" * 300}]}

    half = json.dumps(row(14)).replace("Answer", "\\ud83d").encode() + b"\n"  # an emoji that was cut

    job = planner.plan(jsonl(bad) + b"{nonsense\n" + half, jsonl([long]))

    assert errors_of(job) == [
        ("empty_array", 11, "training_file.messages"),
        ("unknown_parameter", 12, "training_file.colour"),
        ("invalid_json_line", 13, "training_file"),
        ("invalid_value", 14, "training_file"),
        ("invalid_example", 1, "validation_file"),
    ]
    assert "tokens; at most 256" in (job.errors or [])[4]["message"]
    assert planner.storage.list("datasets") == []
    assert planner.events()[0] == (
        "error",
        "The job failed: Invalid 'messages': empty array. Expected at least one message.",
    )


def test_general_file_is_examined_and_stored(planner: Planning) -> None:
    general = planner.file("file-g", jsonl([row(50), row(51)]))

    job = planner.plan(jsonl([preference(n) for n in range(10)]), method="dpo", general_file=general.id)

    assert job.state == JobState.RUNNING
    assert planner.snapshot(datasets.GENERAL) == [row(50), row(51)]


def test_errors_of_the_general_file_are_named(planner: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_GENERAL", 3)
    general = planner.file("file-g", b"{}\n" + jsonl([row(n) for n in range(4)]))

    job = planner.plan(jsonl([row(n) for n in range(10)]), general_file=general.id)

    assert errors_of(job) == [
        ("missing_required_parameter", 1, "general_file.messages"),
        ("too_many_examples", None, "general_file"),
    ]


def test_a_file_of_nothing_but_errors_names_a_thousand(planner: Planning) -> None:
    job = planner.plan(b"{}\n" * 2000)

    assert len(errors_of(job)) == examination.MAX_ERRORS


@pytest.mark.parametrize(
    ("count", "asked"), [(9, {}), (0, {}), (11, {"validation": {"type": "holdout", "fraction": 0.2}})]
)
def test_fewer_than_ten_training_examples_are_refused(planner: Planning, count: int, asked: dict[str, Any]) -> None:
    content = jsonl([row(n) for n in range(count)])

    assert errors_of(planner.plan(content, **asked)) == [("too_few_examples", None, "training_file")]


def test_requested_max_sequence_length_is_enforced(planner: Planning) -> None:
    job = planner.plan(jsonl([row(n) for n in range(10)]), training={"max_sequence_length": 8})

    assert {error[0] for error in errors_of(job)} == {"invalid_example"}


def test_lines_of_a_hundred_thousand_tokens_are_errors_with_their_numbers(planner: Planning) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "word " * 100_000}]}
    many = {"messages": [USER, {"role": "assistant", "content": "Hi"}] * 20_000}

    job = planner.plan(jsonl([*(row(n) for n in range(10)), long, many]))

    assert errors_of(job) == [("invalid_example", line, "training_file") for line in (11, 12)]
    assert all("at most" in error["message"] for error in job.errors or [])


def test_lines_that_are_too_long_are_truncated_where_the_job_says_so(planner: Planning) -> None:
    many = {"messages": [USER, {"role": "assistant", "content": "Hi"}] * 20_000}

    job = planner.plan(jsonl([*(row(n) for n in range(10)), many]), training={"truncate": True})

    assert job.state == JobState.RUNNING
    assert ("warn", "1 rows of the training file were truncated to 256 tokens: lines 11.") in planner.events()


@pytest.mark.parametrize("template", ["", "{{ tools | length if tools }}"])
def test_rows_with_tools_need_template_with_tool_support(planner: Planning, template: str) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    given = {"training": {"chat_template": template + tiny_llama.TEMPLATE}} if template else {}

    job = planner.plan(jsonl([row(n, tools=tools) for n in range(10)]), **given)

    if template:
        assert job.state == JobState.RUNNING
    else:
        assert errors_of(job) == [("invalid_example", line, "training_file") for line in range(1, 11)]
        assert "knows no tools" in (job.errors or [])[0]["message"]


def test_a_training_of_too_many_steps_is_refused(planner: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MAX_STEPS", 29)

    job = planner.plan(jsonl([row(n) for n in range(10)]), hyperparameters={"n_epochs": 3, "batch_size": 1})

    assert errors_of(job) == [("too_many_steps", None, "hyperparameters")]


def test_preferences_are_examined_as_such(planner: Planning) -> None:
    rows = [preference(n) for n in range(10)]

    job = planner.plan(jsonl(rows), method="dpo")

    assert job.state == JobState.RUNNING
    assert planner.snapshot(datasets.TRAINING) == rows


def test_same_seed_reproduces_holdout_split(planner: Planning) -> None:
    rows = [row(n) for n in range(40)]

    planner.plan(jsonl(rows), validation={"type": "holdout", "fraction": 0.25})

    trained, validated = planner.snapshot(datasets.TRAINING), planner.snapshot(datasets.VALIDATION)
    assert (len(trained), len(validated)) == (30, 10)
    assert sorted(json.dumps(one) for one in trained + validated) == sorted(json.dumps(one) for one in rows)
    again = examination.question(
        planner.context.config,
        planner.context.models.now().models["tiny"],
        FineTuning.model_validate(sample_jobs.job(planner.db, "ftjob-1").payload),
        {"training": "files/file-t"},
        seconds=60,
        store=False,
    )
    found = examination.examine(again)
    with planner.db.read() as session:
        data = datasets.data_of_job(session, "ftjob-1")
    assert found.training is not None
    assert found.validation is not None
    assert (found.training.sha256, found.validation.sha256) == (
        data[datasets.TRAINING].sha256,
        data[datasets.VALIDATION].sha256,
    )


def test_temporal_validation_takes_the_latest_rows(planner: Planning) -> None:
    rows = [row(n, metadata={"time": (n * 7) % 20}) for n in range(20)]

    planner.plan(jsonl(rows), validation={"type": "temporal", "fraction": 0.2})

    assert {one["metadata"]["time"] for one in planner.snapshot(datasets.VALIDATION)} == {16, 17, 18, 19}


def test_duplicates_and_rows_of_the_validation_file_are_warned_of(planner: Planning) -> None:
    rows = [row(n) for n in range(12)]

    job = planner.plan(jsonl([*rows, rows[3]]), jsonl([rows[5], row(99)]))

    assert job.state == JobState.RUNNING
    warnings = [message for level, message in planner.events() if level == "warn"]
    assert warnings == [
        "1 rows of the training file stand in the validation file too: lines 6.",
        "1 rows of the training file are duplicates of earlier ones: lines 13.",
    ]
    assert len(planner.snapshot(datasets.VALIDATION)) == 2


def test_job_waits_while_another_process_examines_files(planner: Planning) -> None:
    with hold_exclusively(planner.context.config.data_dir / "run" / "examination"), pytest.raises(Abandoned) as waiting:
        planner.plan(jsonl([row(n) for n in range(10)]))

    assert waiting.value.delay > 0
    assert sample_jobs.job(planner.db, "ftjob-1").state == JobState.QUEUED


def test_a_base_that_has_left_the_models_file_fails_the_job(planner: Planning) -> None:
    job = planner.plan(jsonl([row(n) for n in range(10)]), base="another")

    assert errors_of(job) == [("model_not_available", None, "model")]


def test_job_waits_for_missing_base_model_files(planner: Planning, base: Path) -> None:
    folder = planner.context.config.data_dir
    (folder / "models.yaml").write_text(f"models:\n  tiny: {{source: {{path: {base / 'away'}}}, engine: vllm}}\n")

    with pytest.raises(Abandoned) as waits:
        planner.plan(jsonl([row(n) for n in range(10)]))

    assert waits.value.waiting_for == "model"


def test_a_worker_that_ends_stops_the_examination(real_planner: Planning) -> None:
    planner = real_planner
    job_id = planner.submit(jsonl([row(n) for n in range(10)]))
    claim = sample_jobs.claim_job(planner.db, job_id, Task.PLAN)
    hold = ClaimHandle(job_id, claim.epoch)
    hold.end()

    with pytest.raises(Abandoned):
        training_plan.plan(planner.context, claim, hold)

    assert sample_jobs.job(planner.db, job_id).state == JobState.QUEUED


def test_released_plan_is_completed_by_second_planner(planner: Planning) -> None:
    job_id = planner.submit(jsonl([row(n) for n in range(10)]))
    first = sample_jobs.claim_job(planner.db, job_id, Task.PLAN)
    with planner.db.write() as session:
        ledger.release(session, job_id, first.epoch)

    planner.run(job_id)

    assert sample_jobs.job(planner.db, job_id).state == JobState.RUNNING


def test_the_files_of_a_live_job_stay(planner: Planning) -> None:
    planner.submit(jsonl([row(0)]), jsonl([row(1)]))

    with planner.db.read() as session:
        read = session.scalars(select(File.id).where(kinds.is_read(File.id)).order_by(File.id)).all()

    assert list(read) == ["file-t", "file-v"]

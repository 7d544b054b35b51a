"""Batches that ask for tuned models: the base's workers run them, each line is answered by its own adapter."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.db.engine import Database
from jobs.ledger import pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import JobState
from jobs.queues import Queue
from jobs.timings import Timings
from tests.support import tuned_adapters
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import MODEL, InlineDeployment, chat_line, jsonl, running
from workers.engines.swapped_engine import SwappedEngine

ACME, RIVAL = "ft:fake-model:acme:support:abc", "ft:fake-model:rival:support:def"


def lines(model: str, count: int, prompt: str = "say") -> bytes:
    return jsonl([chat_line(f"{prompt}-{n}", f"{prompt} {n}", model=model) for n in range(count)])


def voices(inline: InlineDeployment, job_id: str) -> set[str]:
    """Return the first words of all answers of a batch: an adapter's name, or the base's "echo"."""
    answers, errors = inline.results(inline.job(job_id))
    assert not errors
    return {one["response"]["body"]["choices"][0]["message"]["content"].split()[0] for one in answers}


def test_batches_of_two_projects_are_answered_by_own_adapters_and_base(db: Database, tmp_path: Path) -> None:
    engine = FakeEngine((MODEL,), delay=0.002, adapters=1)  # each change of the adapter waits for what runs
    with running(db, tmp_path, engine) as inline:
        own = {
            name: tuned_adapters.tuned_model(db, inline.storage, name, project=name.split(":")[2])
            for name in (ACME, RIVAL)
        }
        jobs = {
            inline.submit(lines(name, 20, f"{name} {n}"), project=project): own.get(name, "echo")
            for n in range(2)
            for name, project in ((ACME, "acme"), (RIVAL, "rival"), (MODEL, "acme"))
        }
        ended = inline.drain(*jobs, timeout=120)

        assert [(job.state, job.completed, job.failed) for job in ended] == [(JobState.SUCCEEDED, 20, 0)] * 6
        assert {job_id: voices(inline, job_id) for job_id in jobs} == {
            job_id: {voice} for job_id, voice in jobs.items()
        }
        assert set(engine.loads) == set(own.values())


def test_job_names_requested_model_and_its_base_model(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme")
        [job] = inline.drain(inline.submit(lines(ACME, 2), project="acme"))

        assert (job.model, job.serves_as) == (ACME, MODEL)
        [first, _], _ = inline.results(job)
        assert first["response"]["body"]["model"] == ACME


def test_the_lines_that_a_deletion_leaves_fail_with_its_code(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme")
        with sqlite.write() as session:
            pauses.pause(session, Scope.QUEUE, "gpu.generate", actor="test")
        job_id = inline.submit(lines(ACME, 3), project="acme")
        inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
        tuned_adapters.delete(sqlite, ACME)
        with sqlite.write() as session:
            pauses.resume(session, Scope.QUEUE, "gpu.generate", actor="test")
        [job] = inline.drain(job_id)

        _, errors = inline.results(job)
        assert [one["response"]["body"]["error"]["code"] for one in errors] == ["model_deleted"] * 3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_model_deletion_during_batch_retains_answers_and_fails_rest(
    sqlite: Database, tmp_path: Path, method: str
) -> None:
    asked: list[str] = []
    seen_soon = replace(Timings(), tuned_model_look=0.05)
    fake, queue = (swapped(0.3, asked), Queue.TUNED) if method == "full" else (busy(0.3, asked), Queue.GENERATE)
    with running(sqlite, tmp_path, fake, seen_soon, queue) as inline:
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme", method=method)
        job_id = inline.submit(lines(ACME, 80), project="acme")  # ten shards, a few at once
        inline.until(lambda: bool(asked))
        tuned_adapters.delete(sqlite, ACME)
        [job] = inline.drain(job_id, timeout=60)

        answers, errors = inline.results(job)
        assert len(answers) + len(errors) == 80
        assert 0 < len(answers) < 80
        assert {one["response"]["body"]["error"]["code"] for one in errors} == {"model_deleted"}


def busy(delay: float, asked: list[str]) -> FakeEngine:
    return FakeEngine((MODEL,), delay=delay, on_prompt=asked.append)


def swapped(delay: float = 0.0, asked: list[str] | None = None) -> SwappedEngine:
    """Make an engine for whole models, which answer by the names of their weights."""
    note_prompt = asked.append if asked is not None else None
    return SwappedEngine(
        lambda base, adapter: FakeEngine((base,), delay=delay, voice=adapter.name, on_prompt=note_prompt),
        FakeEngine.version,
    )


def test_batches_of_whole_models_are_answered_by_their_own_weights(db: Database, tmp_path: Path) -> None:
    with running(db, tmp_path, swapped(0.002), queue=Queue.TUNED) as inline:
        own = {
            name: tuned_adapters.tuned_model(db, inline.storage, name, project=name.split(":")[2], method="full")
            for name in (ACME, RIVAL)
        }
        jobs = {inline.submit(lines(name, 20), project=name.split(":")[2]): name for name in (ACME, RIVAL, ACME)}
        ended = inline.drain(*jobs, timeout=120)

        assert [(job.state, job.completed, job.failed) for job in ended] == [(JobState.SUCCEEDED, 20, 0)] * 3
        assert [(job.queue, job.serves_as) for job in ended] == [(Queue.TUNED, None)] * 3
        assert {job_id: voices(inline, job_id) for job_id in jobs} == {
            job_id: {own[name]} for job_id, name in jobs.items()
        }
        body = inline.results(ended[0])[0][0]["response"]["body"]
        assert (body["model"], body["system_fingerprint"]) == (ACME, f"fake-model+{own[ACME]}+fake-1")


def test_a_batch_of_a_whole_model_waits_for_a_process_that_serves_such_models(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme", method="full")
        job_id = inline.submit(lines(ACME, 3), project="acme")
        inline.until(lambda: inline.job(job_id).waiting_for == "model")

    with running(sqlite, tmp_path, swapped(), queue=Queue.TUNED) as inline:
        [job] = inline.drain(job_id)
        assert (job.state, job.completed) == (JobState.SUCCEEDED, 3)


@pytest.mark.parametrize("name", [ACME, MODEL])
def test_a_pause_of_the_model_or_its_base_holds_its_jobs(sqlite: Database, tmp_path: Path, name: str) -> None:
    with running(sqlite, tmp_path) as inline:
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme")
        with sqlite.write() as session:
            pauses.pause(session, Scope.MODEL, name, actor="test")
        job_id = inline.submit(lines(ACME, 2), project="acme")
        inline.until(lambda: inline.job(job_id).state == JobState.RUNNING)
        for _ in range(20):
            inline.dispatcher.tick()
        assert inline.job(job_id).completed == 0

        with sqlite.write() as session:
            pauses.resume(session, Scope.MODEL, name, actor="test")
        assert inline.drain(job_id)[0].completed == 2


def test_model_of_other_project_is_rejected_like_unknown_model(sqlite: Database, tmp_path: Path) -> None:
    with running(sqlite, tmp_path) as inline:
        inline.gpu.standing.models = (MODEL,)  # no endpoint here takes any name
        inline.gpu.heartbeat.announce()
        tuned_adapters.tuned_model(sqlite, inline.storage, ACME, project="acme")
        jobs = [inline.submit(lines(name, 1), project="rival") for name in (ACME, "ft:fake-model:acme::none")]
        ended = inline.drain(*jobs)

        assert [(job.state, (job.errors or [{}])[0]["code"]) for job in ended] == [
            (JobState.FAILED, "model_not_found")
        ] * 2

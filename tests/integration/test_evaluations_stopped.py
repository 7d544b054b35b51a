"""Runs of evals that are cancelled, or whose eval is deleted, in each state."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.evals.tables import EvalRun
from jobs.ledger.states import TERMINAL, JobState
from jobs.queues import Queue, Task
from jobs.timings import Timings
from tests.support.eval_client import SAME, SCORE, World, evaluating, items
from workers.evals.python_grader import RunStopped

Swallows = Callable[[str, str, Sequence[Any], str], bool]


def nothing(_task: str, _queue: str, _arguments: Sequence[Any], _run: str) -> bool:
    return False


def answers(task: str, queue: str, _arguments: Sequence[Any], _run: str) -> bool:
    return task == Task.RUN and queue != Queue.EVALUATE


def plan(task: str, _queue: str, arguments: Sequence[Any], run: str) -> bool:
    return task == Task.PLAN and run in str(arguments)


def grades(task: str, queue: str, _arguments: Sequence[Any], _run: str) -> bool:
    return task == Task.RUN and queue == Queue.EVALUATE


def finish(task: str, _queue: str, arguments: Sequence[Any], run: str) -> bool:
    return task == Task.FINISH and run in str(arguments)


#: By stage: the messages that are lost, so that a run stays there; the states of its first step and of the run.
STAGES: dict[str, tuple[Swallows, JobState, JobState]] = {
    "waiting": (nothing, JobState.QUEUED, JobState.QUEUED),
    "asking": (answers, JobState.RUNNING, JobState.QUEUED),
    "planning": (plan, JobState.SUCCEEDED, JobState.QUEUED),
    "grading": (grades, JobState.SUCCEEDED, JobState.RUNNING),
    "finishing": (finish, JobState.SUCCEEDED, JobState.FINISHING),
    "ended": (nothing, JobState.SUCCEEDED, JobState.SUCCEEDED),
}
STOPPED = [pytest.param(stage, marks=() if stage == "grading" else pytest.mark.verify) for stage in STAGES]


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path, shard_lines=2) as world:
        yield world


def brought_to(world: World, stage: str) -> Any:
    """Return a run of five items with a judge that stays in a stage."""
    swallows, step, state = STAGES[stage]
    run = world.run(world.eval(SAME, SCORE), items(*(f"q{n}" for n in range(5))))
    world.inline.elsewhere = lambda task, queue, arguments: swallows(task, queue, arguments, run.id)
    world.inline.until(lambda: (world.steps(run.id)[0].state, world.inline.job(run.id).state) == (step, state), 60)
    return run


def end(world: World, run_id: str, steps: Sequence[str]) -> None:
    """Let messages arrive again until all jobs of the run have ended."""
    world.inline.elsewhere = lambda *_: False
    world.inline.drain(run_id, *steps, timeout=60)
    world.inline.wait_until_idle()


@pytest.mark.parametrize("stage", STOPPED)
def test_run_is_cancelled_in_each_state(world: World, stage: str) -> None:
    run, evals = brought_to(world, stage), world.client.evals
    steps = [step.id for step in world.steps(run.id)]
    is_late = stage in ("finishing", "ended")

    if is_late:
        with pytest.raises(openai.ConflictError):
            evals.runs.cancel(run.id, eval_id=run.eval_id)
    else:
        assert evals.runs.cancel(run.id, eval_id=run.eval_id).status == "canceled"
    end(world, run.id, steps)

    done = evals.runs.retrieve(run.id, eval_id=run.eval_id)
    assert done.status == ("completed" if is_late else "canceled")
    assert world.told(run.id) == ["eval.run.succeeded" if is_late else "eval.run.canceled"]
    numbers = [item.datasource_item_id for item in world.output(run)]
    assert numbers == sorted(set(numbers))
    assert done.result_counts.total == len(numbers) == (5 if is_late else len(numbers))
    assert all(job.state in TERMINAL for job in world.steps(run.id))


@pytest.mark.parametrize("stage", STOPPED)
def test_eval_is_deleted_while_its_run_is_in_each_state(world: World, stage: str) -> None:
    run = brought_to(world, stage)
    steps = [step.id for step in world.steps(run.id)]

    assert world.client.evals.delete(run.eval_id).deleted
    end(world, run.id, steps)

    assert world.inline.storage.list("jobs") == []
    with world.inline.db.read() as session:
        assert session.scalars(select(EvalRun)).all() == []
    with pytest.raises(openai.NotFoundError):
        world.client.evals.retrieve(run.eval_id)


CODE = {"type": "python", "source": "def grade(sample, item): return 1"}


class Sandbox:
    """A sandbox whose code never ends: it is stopped with its run, as the real one is."""

    calls: ClassVar[list[str]] = []

    def __init__(self, _timings: Timings, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def run(self, _project: str, source: str, _item: Any, _sample: Any, seconds: float) -> float:
        assert 0 < seconds <= Timings().item_grading
        self.calls.append(source)
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            if self._stopped():
                raise RunStopped
            threading.Event().wait(0.05)
        return 1.0

    def close(self) -> None:
        """Have nothing to end."""


@pytest.mark.parametrize("way", ["cancelled", "deleted"])
def test_run_that_ends_within_an_item_frees_its_worker(world: World, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("workers.evals.evaluation.PythonSandbox", Sandbox)
    monkeypatch.setattr(Sandbox, "calls", [])
    world.inline.cpu.standing.sandbox_lacks = []
    world.inline.cpu.heartbeat.announce()
    parts = {f"g{n}": {**CODE, "name": "code"} for n in range(20)}
    multi = {"type": "multi", "name": "many", "graders": parts, "calculate_output": "g1"}
    run = world.run(world.eval(multi, {**CODE, "name": "one"}), items("q0"))
    steps = [step.id for step in world.steps(run.id)]
    world.inline.until(lambda: bool(Sandbox.calls), 60)

    if way == "cancelled":
        world.client.evals.runs.cancel(run.id, eval_id=run.eval_id)
    else:
        world.client.evals.runs.delete(run.id, eval_id=run.eval_id)
    world.inline.wait_until_idle(30)

    assert len(Sandbox.calls) == 1
    world.inline.drain(run.id, *steps, timeout=60)
    assert world.inline.job(run.id).state == JobState.CANCELLED
    assert world.inline.job(run.id).completed == 0

"""Python graders of a real deployment under kill -9: of the worker, of the template, and of an item's process.

worker ── outer process ── template ── an item's process
  │                          │            └─ killed: the item errs, as by its own code
  │                          └─ killed: the item errs. A retry of the run grades both
  └─ killed with all of them: another worker grades the item
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import InternalServerError, OpenAI
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.ledger.tables import Segment
from tests.support.system import StubEngine, System, command, eventually, signal_all

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

ITEMS = 60
SOURCE = """
import time
def grade(sample, item):
    time.sleep(0.15)
    return item["n"] % 2
"""
GRADER: Any = {"type": "python", "name": "odd", "source": SOURCE, "pass_threshold": 0.5}
CONFIG: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": False}
CONTENT: Any = [{"item": {"n": n}} for n in range(ITEMS)]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with StubEngine(tmp_path, "stub-model") as engine:
        given = {"NIGHTMILL_VLLM_ENABLED": "false", "NIGHTMILL_ENGINE_URLS": engine.url}
        system = System(tmp_path, **given)
        try:
            system.start(300)
            yield system
        finally:
            system.destroy()


def sandboxes(system: System) -> list[psutil.Process]:
    """Return the processes of python graders, of each worker an outer one, its template, and that of an item."""
    return [process for process in system.tree("evaluate")[1:] if "grader_child" in " ".join(command(process))]


def depth(process: psutil.Process) -> int:
    return sum("grader_child" in " ".join(command(parent)) for parent in process.parents())


def at_depth(system: System, wanted: int) -> list[psutil.Process]:
    rows = []
    for process in sandboxes(system):
        try:
            if depth(process) == wanted:
                rows.append(process)
        except psutil.NoSuchProcess:
            continue
    return rows


def kill_at(system: System, wanted: int) -> None:
    """Kill a process of python graders: 1 is a template, 2 an item's process."""
    victims: list[psutil.Process] = []

    def struck() -> bool:
        victims[:] = at_depth(system, wanted)[:1]
        signal_all(victims, signal.SIGKILL)
        return bool(victims)

    eventually(struck, 60, f"a process at depth {wanted}", every=0.01)


def test_every_item_is_graded_once_despite_kills(system: System) -> None:
    seen: list[psutil.Process] = []
    with OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=60) as client:
        runs = client.evals.runs
        eventually(lambda: _accepts(client), 120, "the worker says that it has the sandbox", every=0.5)
        eval_id = client.evals.create(data_source_config=CONFIG, testing_criteria=[GRADER]).id
        source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": CONTENT}}
        run = runs.create(eval_id, data_source=source)

        killed = 0

        def graded() -> int:
            return runs.retrieve(run.id, eval_id=eval_id).result_counts.total

        def kill_until_one_errs() -> bool:
            """Kill an item's process: one that has just answered leaves its item graded."""
            nonlocal killed
            kill_at(system, 2)
            killed += 1
            wait_for_more()
            return runs.retrieve(run.id, eval_id=eval_id).result_counts.errored > 0

        def wait_for_more() -> None:
            before = graded()
            eventually(lambda: graded() > before, 120, "more items are graded")

        wait_for_more()
        eventually(kill_until_one_errs, 120, "the item of a killed process errs", every=0)
        kill_at(system, 1)
        wait_for_more()
        seen += sandboxes(system)
        signal_all(system.tree("evaluate"), signal.SIGKILL)
        at_the_kill = graded()
        eventually(lambda: runs.retrieve(run.id, eval_id=eval_id).status == "completed", 240, "the run ends", every=0.5)

        assert 0 < at_the_kill < ITEMS, "nothing was killed in the middle"
        done = runs.retrieve(run.id, eval_id=eval_id)
        _check(client, done, system)
        assert 0 < done.result_counts.errored <= killed + 1, "the items of the processes that were killed alone"
        again = client.post(f"/jobs/{run.id}/retry", cast_to=dict[str, Any], body={})["id"]
        eventually(
            lambda: runs.retrieve(again, eval_id=eval_id).status == "completed", 120, "the retry ends", every=0.5
        )
        retried = runs.retrieve(again, eval_id=eval_id)
        _check(client, retried, system)
        assert retried.result_counts.errored == 0

    eventually(lambda: not any(process.is_running() for process in seen), 30, "no process of a grader is left")


def _accepts(client: OpenAI) -> bool:
    """Return whether the grader can be run: a worker that has just started has probed nothing yet."""
    try:
        client.with_options(max_retries=0).fine_tuning.alpha.graders.validate(grader=GRADER)
    except InternalServerError:
        return False
    return True


def _check(client: OpenAI, run: Any, system: System) -> None:
    """Check that each item was graded once, and right where it did not err."""
    counts = run.result_counts
    assert counts.passed + counts.failed + counts.errored == counts.total == ITEMS
    (criterion,) = run.per_testing_criteria_results
    assert (criterion.passed, criterion.failed) == (counts.passed, counts.failed)
    listed = list(client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, limit=100))
    assert [row.datasource_item_id for row in listed] == list(range(ITEMS))
    scores = {row.datasource_item["n"]: row.results[0].score for row in listed if row.status != "error"}
    assert scores == {n: n % 2 for n in scores}
    db = Database(f"sqlite:///{system.data / 'nightmill.db'}", patience=10)
    with db.read() as session:
        segments = session.scalars(select(Segment).where(Segment.job_id == run.id)).all()
    db.close()
    assert sum(int.from_bytes(segment.covered, "little").bit_count() for segment in segments) == ITEMS

"""A model that nobody serves says what would serve it."""

import pytest

from jobs.db.engine import Database
from jobs.fleet import serving
from jobs.fleet.models_file import EngineKind
from jobs.fleet.serving import Needed
from tests.unit.jobs.fleet.test_workers import register, worker


@pytest.mark.parametrize(
    ("queue", "engine", "command"),
    [
        ("gpu.generate", "vllm", "python -m workers gpu"),
        ("gpu.embed", "rerank", "python -m workers embed"),
        ("gpu.tuned", "vllm", "python -m workers tuned"),
        ("gpu.large", "vllm", "python -m workers gpu gpu.large"),
        ("gpu.code", "embed", "python -m workers embed gpu.code"),
    ],
)
def test_queue_without_worker_is_reported_with_worker_command(
    sqlite: Database, queue: str, engine: str, command: str
) -> None:
    with sqlite.read() as session:
        state = serving.states(session, [Needed("m", queue, EngineKind(engine))])["m"]

    told = f"no live worker of {queue} serves it: `nightmill up` starts one, and so does `{command}`"
    assert (state.state, serving.reason_not_served(state)) == ("no_worker", told)


def test_workers_that_have_other_models_are_to_be_looked_at(sqlite: Database) -> None:
    """As where a package is not installed: another worker would not have the model either."""
    register(sqlite, worker("a", models=["other"]))
    with sqlite.read() as session:
        state = serving.states(session, [Needed("m", "gpu.generate", EngineKind.VLLM)])["m"]

    told = "no live worker of gpu.generate serves it: `nightmill doctor` on the host of one says why"
    assert (state.state, serving.reason_not_served(state)) == ("no_worker", told)

"""A models file that changes while everything runs."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.fleet.models_file import Models
from jobs.ledger.states import JobState
from jobs.platform.limiters import SharedExclusiveLock
from jobs.queues import Queue
from jobs.registry.tables import BaseVersion
from jobs.settings import Settings
from jobs.timings import Timings
from tests.support import stub_engine
from tests.support.inline_deployment import InlineDeployment, chat_line, jsonl, running
from workers import engine_process as worker
from workers.engine_process import Reloading
from workers.engines.build_engines import build

pytestmark = pytest.mark.verify


def _file(folder: Path, **urls: str) -> None:
    models = [f'  {name}: {{source: {{urls: ["{url}"]}}, engine: http}}\n' for name, url in urls.items()]
    (folder / "models.yaml").write_text("models:\n" + "".join(models))


def _batch(inline: InlineDeployment, model: str) -> str:
    return inline.submit(jsonl([chat_line(f"r{n}", "x", model=model) for n in range(20)]))


def test_a_server_that_is_added_answers_the_batches_that_wait_for_it(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Settings(data_dir=tmp_path)
    with (
        stub_engine.running(tmp_path / "a", "--models", "alpha") as alpha,
        stub_engine.running(tmp_path / "b", "--models", "beta") as beta,
    ):
        _file(tmp_path, alpha=alpha)
        router = build(config, Models(config).now(), Queue.GENERATE)
        with running(db, tmp_path, router, replace(Timings(), engine_busy=0.5)) as inline:
            server_lock = SharedExclusiveLock(tmp_path / "run", 30)
            reloading = Reloading(inline.gpu, inline.host, router, Queue.GENERATE, server_lock, inline.gpu.stop.set)
            announcing = (inline.gpu, router, Queue.GENERATE, reloading.look)
            threading.Thread(target=worker._keep_announced, args=announcing, daemon=True).start()
            inline.until(lambda: inline.gpu.standing.models == ("alpha",))
            assert inline.drain(_batch(inline, "alpha"))[0].completed == 20

            _file(tmp_path, alpha=alpha, beta="http://127.0.0.1:9")
            waiting = _batch(inline, "beta")
            inline.until(lambda: inline.job(waiting).state == JobState.RUNNING)
            assert inline.drain(_batch(inline, "alpha"))[0].completed == 20
            inline.until(lambda: inline.job(waiting).waiting_for == "model", 60)

            _file(tmp_path, alpha=alpha, beta=beta)
            (job,) = inline.drain(waiting, timeout=60)

            assert (job.state, job.completed, job.waiting_for) == (JobState.SUCCEEDED, 20, None)
            with db.read() as session:
                versions = session.execute(select(BaseVersion.model, BaseVersion.number, BaseVersion.engine))
                assert sorted(map(tuple, versions)) == [("alpha", 1, "http"), ("beta", 1, "http")]
            server_lock.close()

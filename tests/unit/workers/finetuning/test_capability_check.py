"""A child process finds what a worker can train, which the worker's heartbeats report."""

from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.fleet.tables import Worker
from jobs.settings import Settings
from tests.support import training_worker
from workers.finetuning import capability_check


def told(db: Database, worker_id: str) -> object:
    with db.read() as session:
        return session.scalar(select(Worker.training).where(Worker.id == worker_id))


@pytest.fixture
def config(db: Database, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, database_url=db.url, lease_seconds=0.6)


def test_heartbeats_report_detected_capabilities(
    db: Database, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability_check, "_MODULE", "tests.support.fake_capabilities")
    context = training_worker.context_of(config)
    try:
        assert told(db, context.worker_id) is None
        capability_check.examine(context).join()
        context.heartbeat.announce()

        assert told(db, context.worker_id) == {"device": "a fake", "free_bytes": 1, "qlora": True, "fault": None}
    finally:
        context.heartbeat.leave()
        context.db.close()


def test_worker_without_the_libraries_says_nothing(
    config: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capability_check, "_MODULE", "tests.support.no_such_module")
    context = training_worker.context_of(config)
    try:
        capability_check.examine(context).join()
    finally:
        context.heartbeat.leave()
        context.db.close()

    assert context.standing.training is None
    assert "capabilities_unknown" in [record.message for record in caplog.records]


@pytest.mark.verify
def test_this_machine_is_examined(config: Settings) -> None:
    context = training_worker.context_of(config)
    try:
        capability_check.examine(context).join()
    finally:
        context.heartbeat.leave()
        context.db.close()

    training = context.standing.training
    assert training is not None
    assert training["qlora"] == (training["fault"] is None)
    assert training["free_bytes"] > 1 << 20

"""How often a worker looks for a broker that is away."""

import itertools
from pathlib import Path

import pytest

from jobs.settings import Settings
from workers import app
from workers.runtime.broker_retry import Consumer

_AWAY_SECONDS = 60


class _Over(Exception):
    """It has been away for long enough."""


def test_a_broker_that_is_back_is_found_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, looked = list[float](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) > _AWAY_SECONDS:
            raise _Over

    monkeypatch.setattr("kombu.utils.functional.sleep", sleep)
    monkeypatch.setattr("celery.worker.consumer.consumer.error", lambda *_: looked.append(sum(slept)))
    built = app.build(Settings(data_dir=tmp_path))
    consumer = Consumer.__new__(Consumer)
    consumer.app, consumer.first_connection_attempt, consumer.broker_connection_retry_attempt = built, True, 0
    with built.connection_for_read() as connection, pytest.raises(_Over):
        consumer.ensure_connected(connection)

    gaps = [later - earlier for earlier, later in itertools.pairwise(looked)]
    assert len(gaps) > 10
    assert max(gaps) <= 4, gaps
    assert built.conf.worker_consumer == "workers.runtime.broker_retry:Consumer"

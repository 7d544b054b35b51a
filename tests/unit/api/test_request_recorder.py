"""The recorder of interactive requests writes while its process runs and when that ends, and keeps what it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from api import request_recorder
from api.inference.request_metrics import RequestMetrics
from api.request_recorder import RequestRecorder
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.inference import request_counts
from jobs.inference.request_counts import ModelRequests


def requests_of(db: Database, project_id: str = "p") -> dict[str, ModelRequests]:
    with db.read() as session:
        return request_counts.summarize(session, project_id, 0, int(now()) + 60)


async def test_closing_recorder_writes_its_counts(db: Database) -> None:
    recorder = RequestRecorder(db)
    recorder.record("p", "m", "duration", "3", 0.4)
    recorder.record("p", "m", "duration", "3", 0.5)
    assert requests_of(db) == {}

    await recorder.close()

    assert requests_of(db)["m"].distributions["duration"].total == pytest.approx(0.9)


async def test_recorder_keeps_counts_while_the_database_is_busy(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_recorder, "_EVERY", 0.01)
    failures = iter([DatabaseBusy(), DatabaseBusy()])
    write = db.write

    @contextmanager
    def busy(*args: Any, **options: Any) -> Iterator[Any]:
        if (error := next(failures, None)) is not None:
            raise error
        with write(*args, **options) as session:
            yield session

    monkeypatch.setattr(db, "write", busy)
    recorder = RequestRecorder(db)
    recorder.record("p", "m", "duration", "3", 0.4)
    assert recorder._writing is not None
    await recorder._writing

    assert requests_of(db)["m"].requests == 1


async def test_error_is_recorded_for_its_project(db: Database) -> None:
    recorder = RequestRecorder(db)
    metrics = RequestMetrics("m", lambda *values: recorder.record("p", *values))
    with pytest.raises(DatabaseBusy), metrics.counting_errors():
        raise DatabaseBusy

    await recorder.close()

    assert list(requests_of(db)["m"].errors.values()) == [1]
    assert requests_of(db, "stranger") == {}

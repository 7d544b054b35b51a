"""When a source is synced, who is told, and what goes with it."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.models import Delivery, Event, Job, Source, SourceItem, VectorStore
from jobs.states import LIVE
from tests.support.ingesting import Works
from tests.support.sourcing import Sync, alive, of_folder
from workers.housekeeping import Housekeeper


def test_a_source_is_synced_by_one_job_at_a_time(mill: Works, library: Path) -> None:
    source = Sync(mill, mill.store(), type="folder", path=str(library), cron="* * * * *")
    first = source.now()["file_batch_id"]

    mill.ok(f"{source.path}/{source.id}/sync")
    with mill.db.write() as session:
        session.execute(update(Source).values(next_at=0))
    keeper(mill).keep()

    with mill.db.read() as session:
        assert session.scalars(select(Job.id).where(Job.state.in_(LIVE))).all() == [first]
    assert source.now()["next_run_at"] > now()


def test_a_schedule_syncs_once_each_time_unless_it_is_paused(mill: Works, library: Path) -> None:
    source = of_folder(mill, library, cron="* * * * *", timezone="Europe/Zurich")
    first = source.now()["file_batch_id"]
    mill.ok(f"{source.path}/{source.id}/pause")
    keep_at(mill, 0)
    assert source.now()["file_batch_id"] == first
    assert mill.ok(f"{source.path}/{source.id}/resume")["next_run_at"] > now()

    keep_at(mill, 0)
    second = source.now()["file_batch_id"]
    keep_at(mill, None)
    mill.drive()

    assert second != first
    assert source.now()["file_batch_id"] == second
    assert source.counts() == [3, 0, 0, 0, 3, 0]


def keeper(mill: Works) -> Housekeeper:
    return Housekeeper(mill.context.config, mill.db, mill.storage, now)


def keep_at(mill: Works, due: float | None) -> None:
    if due is not None:
        with mill.db.write() as session:
            session.execute(update(Source).values(next_at=due))
    keeper(mill).keep()


def test_a_deleted_source_takes_its_files_along_and_no_others(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    other = each.upload("apple of somebody", "mine.txt")
    each.attach(source.store, other)
    each.drive()

    each.delete(f"{source.path}/{source.id}")

    assert source.names("apple") == {"mine.txt"}
    assert alive(each) == {other}
    assert not source.items()
    assert each.api.get(f"/v1{source.path}/{source.id}").status_code == 404


def test_a_source_that_is_deleted_while_it_syncs_leaves_nothing(mill: Works, library: Path) -> None:
    for step in ("parse", "index", "finish"):
        source = Sync(mill, mill.store(), type="folder", path=str(library))
        mill.drive(until=step)

        mill.delete(f"{source.path}/{source.id}")
        mill.drive()

        assert mill.rows(source.store) == []
        assert alive(mill) == set()


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_the_end_of_a_store_is_that_of_its_sources_and_their_files(each: Works, library: Path, end: str) -> None:
    source = of_folder(each, library, cron="* * * * *")
    if end == "deleted":
        each.delete(f"/vector_stores/{source.store}")
    else:
        with each.db.write() as session:
            session.execute(update(VectorStore).values(expires_at=1))
    house = keeper(each)
    house._swept = float("-inf")

    house.keep()

    with each.db.read() as session:
        assert session.scalars(select(Source)).all() == []
        assert session.scalars(select(SourceItem)).all() == []
    assert alive(each) == set()


def test_events_tell_of_each_sync(each: Works, library: Path) -> None:
    types = ["vector_store.source.synced", "vector_store.source.failed"]
    each.ok("/webhook_endpoints", json={"name": "n", "url": "https://192.0.43.8/h", "event_types": types})
    source = of_folder(each, library)
    shutil.rmtree(library)
    source.again()

    with each.db.read() as session:
        told = session.scalars(select(Event).where(Event.type.in_(types)).order_by(Event.created_at)).all()
        deliveries = session.scalars(select(Delivery.event_id)).all()
    assert [event.type for event in told] == types
    assert {event.id for event in told} == set(deliveries)
    assert told[0].data == {"id": source.id, "vector_store_id": source.store}
    assert each.told(str(source.now()["file_batch_id"]))[-1][0] == "vector_store.file_batch.failed"

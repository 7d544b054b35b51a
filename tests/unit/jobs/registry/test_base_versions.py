"""Versions of the models that workers announce: numbered once for each source."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from jobs.db.engine import Database
from jobs.registry import base_versions
from jobs.registry.base_versions import LoadedModel
from jobs.registry.tables import BaseVersion


def loaded(fingerprint: str, model: str = "smollm2") -> LoadedModel:
    return LoadedModel(model, "vllm", f"org/{model}@{fingerprint}", fingerprint, "apache-2.0")


def record(db: Database, *models: LoadedModel) -> None:
    db.retrying(lambda session: base_versions.record(session, models))


def numbers(db: Database, model: str = "smollm2") -> dict[str, int]:
    with db.read() as session:
        rows = session.scalars(select(BaseVersion).where(BaseVersion.model == model))
        return {row.fingerprint: row.number for row in rows}


def test_new_source_is_next_version_and_former_source_keeps_number(db: Database) -> None:
    for fingerprint in ("a", "a", "b", "a", "c"):
        record(db, loaded(fingerprint), loaded("x", "minilm"))

    assert numbers(db) == {"a": 1, "b": 2, "c": 3}
    assert numbers(db, "minilm") == {"x": 1}


def test_repeated_announcement_changes_the_time_alone(db: Database) -> None:
    record(db, loaded("a"))
    with db.write() as session:
        session.scalars(select(BaseVersion)).one().seen_at = 1.0

    record(db, loaded("a"))

    with db.read() as session:
        row = session.scalars(select(BaseVersion)).one()
    assert row.seen_at >= row.created_at > 1
    assert (row.engine, row.source, row.license) == ("vllm", "org/smollm2@a", "apache-2.0")


def test_announcements_of_several_workers_number_each_source_once(db: Database) -> None:
    fingerprints = [chr(ord("a") + number % 4) for number in range(16)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda fingerprint: record(db, loaded(fingerprint)), fingerprints))

    assert sorted(numbers(db).values()) == [1, 2, 3, 4]

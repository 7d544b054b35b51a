"""An upgrade from the schema of the last release with live keys, jobs in flight and a schedule: nothing is lost."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from jobs.bootstrap import MIGRATIONS, migrate
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.queues import Task
from jobs.schedules.tables import Schedule
from jobs.security import keys
from jobs.security.tables import ApiKey, ServiceAccount
from migrations.compatibility import RELEASED
from tests.support.inline_deployment import InlineDeployment, chat_line, jsonl, running
from tests.support.organization import admin_key
from tests.support.services import Postgres
from tests.support.web import make_key, running_app

LINES = 24


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def released_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield an empty database with the schema of the last release."""
    if request.param == "sqlite":
        yield _of_release(f"sqlite:///{tmp_path / 'released.db'}")
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        with server.database(migrated=False) as url:
            yield _of_release(url)


def _of_release(url: str) -> str:
    alembic = Config()
    alembic.set_main_option("script_location", str(MIGRATIONS))
    alembic.attributes["url"] = url
    command.upgrade(alembic, RELEASED)
    return url


def copy_rows(source: str, target: str) -> None:
    """Copy all rows of a database, in the columns that the older schema of another has."""
    new, old = sa.MetaData(), sa.MetaData()
    reading, writing = (sa.create_engine(url, poolclass=sa.NullPool) for url in (source, target))
    new.reflect(reading)
    old.reflect(writing)
    with reading.connect() as rows, writing.begin() as copies:
        for table in old.tables.values():
            if table.name == "alembic_version":
                continue
            columns = [new.tables[table.name].c[column.name] for column in table.columns]
            for row in rows.execute(select(*columns)).mappings():
                copies.execute(table.insert().values({name: row[name] for name in row if row[name] is not None}))
            if writing.dialect.name == "postgresql":
                _advance_sequence(copies, table)


def _advance_sequence(connection: sa.Connection, table: sa.Table) -> None:
    """Let the next row have an id that no copy has."""
    for column in table.primary_key:
        sequence = connection.scalar(select(sa.func.pg_get_serial_sequence(table.name, column.name)))
        if sequence is not None:
            last = select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
            connection.execute(select(sa.func.setval(sequence, last, sa.false())))


class Release:
    """A deployment of the last release at work: its keys, and a job in each state of its life."""

    def __init__(self, folder: Path, db: Database) -> None:
        with running_app(folder, db.url) as web, running(db, folder) as inline:
            self.key, self.manager, self.revoked = (make_key(web, manages=manages) for manages in (False, True, False))
            with db.write() as session:
                self.operator = keys.create_admin_key(session)
                keys.revoke_key(session, keys.id_of(self.revoked))
            self.client = TestClient(web, headers={"Authorization": f"Bearer {self.key}"})
            self.running = self._begin_job(inline)
            self.queued, self.scheduled = self.submit(), self.submit()
            self._schedule(db)

    def submit(self) -> str:
        """Submit a batch by the API; return its id."""
        lines = jsonl([chat_line(f"c{n}", f"question {n}") for n in range(LINES)])
        files = {"file": ("in.jsonl", lines)}
        self.file_id = self.client.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
        return str(self.client.post("/v1/batches", json=self._request()).json()["id"])

    def _request(self) -> dict[str, str]:
        return {"input_file_id": self.file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

    def _begin_job(self, inline: InlineDeployment) -> str:
        """Return a job of which one shard is done, and the messages of the others are lost."""
        numbers = itertools.count()
        inline.lose_messages = lambda task: task == Task.RUN and next(numbers) > 0
        job_id = self.submit()
        inline.until(lambda: bool(_done_shards(inline.db, job_id)))
        inline.wait_until_idle()
        inline.lose_messages = lambda _task: True
        return job_id

    def _schedule(self, db: Database) -> None:
        body = {"cron": "0 3 * * *", "timezone": "UTC", "batch": self._request()}
        answer = self.client.post("/v1/schedules", json=body)
        assert answer.status_code == 200, answer.text
        self.schedule_id = answer.json()["id"]
        with db.write() as session:
            session.execute(update(Schedule).values(next_at=now() - 1))


def _done_shards(db: Database, job_id: str) -> list[tuple[int, int, float | None]]:
    """Return number, epoch and end of each shard that is done."""
    done = (Shard.job_id == job_id, Shard.state == ShardState.DONE)
    with db.read() as session:
        return [tuple(row) for row in session.execute(select(Shard.n, Shard.epoch, Shard.finished_at).where(*done))]


@pytest.fixture
def release(sqlite: Database, tmp_path: Path, released_url: str) -> Release:
    """Return a release that has worked, whose rows are in the database of `released_url`."""
    release = Release(tmp_path, sqlite)
    copy_rows(sqlite.url, released_url)
    migrate(released_url)
    return release


def test_key_opens_the_same_routes_after_an_upgrade(release: Release, released_url: str, tmp_path: Path) -> None:
    with running_app(tmp_path, released_url) as web:

        def ask(key: str, path: str, method: str = "GET") -> Any:
            return TestClient(web, headers={"Authorization": f"Bearer {key}"}).request(method, f"/v1/{path}")

        made, admin = ask(release.manager, "api_keys", "POST").json(), admin_key(web)
        projects = ask(admin, "organization/projects").json()["data"]
        listed = ask(admin, f"organization/projects/{projects[0]['id']}/api_keys").json()["data"]
        statuses = [
            ask(release.key, f"batches/{release.queued}").status_code,
            ask(release.key, "api_keys", "POST").status_code,
            ask(release.revoked, "files").status_code,
            ask(release.operator, "workers").status_code,
            ask(release.operator, "files").status_code,
            ask(made["value"], "files").status_code,
        ]

    assert statuses == [200, 403, 401, 200, 403, 200]
    assert [project["name"] for project in projects] == ["default"]
    plain, manager = keys.id_of(release.key), keys.id_of(release.manager)
    assert {row["id"]: row["owner"]["service_account"]["name"] for row in listed} == {
        f"key_{plain}": f"key {plain}", f"key_{manager}": f"key {manager}", f"key_{made['id']}": f"key {manager}",
    }  # fmt: skip


def test_upgrade_makes_an_account_for_each_key_and_no_key(release: Release, released_url: str) -> None:
    db = Database(released_url)
    with db.read() as session:
        rows = session.scalars(select(ApiKey)).all()
        accounts = set(session.scalars(select(ServiceAccount.id)))
    db.close()

    of_projects = {row.id for row in rows if not row.is_admin}
    assert of_projects == {keys.id_of(key) for key in (release.key, release.manager, release.revoked)}
    assert {row.id for row in rows} - of_projects == {keys.id_of(release.operator)}
    assert {row.owner_id for row in rows} - {None} == accounts == {f"svc_acct_{key_id}" for key_id in of_projects}


def test_job_in_flight_keeps_its_finished_shard_and_ends(release: Release, released_url: str, tmp_path: Path) -> None:
    db = Database(released_url)
    before = _done_shards(db, release.running)
    with running(db, tmp_path) as inline:
        jobs = inline.drain(release.running, release.queued, release.scheduled)
        inline.until(lambda: _scheduled_job(db, release.schedule_id) is not None)
        [fired] = inline.drain(str(_scheduled_job(db, release.schedule_id)))
        results = [inline.results(job) for job in (*jobs, fired)]
    after = _done_shards(db, release.running)
    db.close()

    assert len(before) == 1
    assert (len(after), set(before) <= set(after)) == (LINES // 8, True)
    assert {job.state for job in (*jobs, fired)} == {JobState.SUCCEEDED}
    for good, bad in results:
        assert sorted(line["custom_id"] for line in good) == sorted(f"c{n}" for n in range(LINES))
        assert bad == []


def _scheduled_job(db: Database, schedule_id: str) -> str | None:
    with db.read() as session:
        return session.scalar(select(Job.id).where(Job.schedule_id == schedule_id))

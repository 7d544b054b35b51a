"""The permission to use external servers, as a worker reads it."""

import asyncio

import pytest

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.security import keys
from jobs.security.tables import Project
from workers.engine_process import SECONDS, ProjectPermission
from workers.engines.port import EngineBusy


async def test_a_permission_is_read_once_in_two_seconds_for_each_project(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite.write() as session:
        project_id = keys.ensure_project(session, "p").id
    time, reads = 100.0, 0
    read = sqlite.read

    def counted() -> object:
        nonlocal reads
        reads += 1
        return read()

    monkeypatch.setattr(sqlite, "read", counted)
    permissions = ProjectPermission(sqlite, Project.allow_external, lambda: time)

    before = await asyncio.gather(*(permissions.allows(project_id) for _ in range(10)))
    with sqlite.write() as session:
        keys.ensure_project(session, "p").allow_external = True
    soon = await permissions.allows(project_id)
    time += SECONDS
    later = await permissions.allows(project_id)

    assert (before, soon, later, reads) == ([False] * 10, False, True, 2)


async def test_an_unknown_project_has_no_permission(sqlite: Database) -> None:
    permissions = ProjectPermission(sqlite, Project.allow_external)

    assert [await permissions.allows(name) for name in ("", "proj_nobody")] == [False, False]


async def test_permission_check_raises_busy_without_database(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise DatabaseBusy

    monkeypatch.setattr(sqlite, "read", away)

    with pytest.raises(EngineBusy):
        await ProjectPermission(sqlite, Project.allow_external).allows("p")

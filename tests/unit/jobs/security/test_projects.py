"""Projects: of two that take a name at once, one gets it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.security import keys, projects
from jobs.security.tables import Project


def create(session: Session, weight: float) -> None:
    projects.create(session, "reports", actor="operator", changes={"weight": weight})


def rename(session: Session, weight: float) -> None:
    project = session.get_one(Project, "proj_x", with_for_update=True)
    projects.change(session, project, actor="operator", changes={"name": "reports", "weight": weight})


@pytest.mark.dialects
@pytest.mark.parametrize("take", [create, rename])
def test_later_of_two_projects_with_a_name_is_refused(db: Database, take: Callable[[Session, float], None]) -> None:
    with db.write() as session:
        session.add(Project(id="proj_x", name="figures", created_at=1.0))

    def take_late() -> None:
        with db.write() as session:
            take(session, 7.0)

    with ThreadPoolExecutor(1) as pool:
        with db.write() as session:
            create(session, 2.0)
            late = pool.submit(take_late)
            with pytest.raises(TimeoutError):
                late.result(0.3)
        with pytest.raises(InvalidRequest) as refused:
            late.result(10)

    assert refused.value.code == "project_exists"
    with db.read() as session:
        reports = keys.find_project(session, "reports")
        figures = keys.find_project(session, "figures")
    assert reports is not None
    assert figures is not None
    assert (reports.weight, figures.weight) == (2.0, 1.0)

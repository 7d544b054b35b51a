"""Limits of a project of its own, in place of the settings."""

from typing import Any

import pytest
from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.ledger.tables import Audit
from jobs.security import keys
from jobs.settings import Settings
from jobs.usage.project_limits import SETTINGS, limit_of, set_limits


def test_limits_of_a_project_go_before_the_settings_until_removal(db: Database) -> None:
    config: Any = Settings(project_eval_runs=7, project_max_bytes=0)
    with db.write() as session:
        project, other = keys.ensure_project(session, "a"), keys.ensure_project(session, "b")
        set_limits(session, project, {"eval_runs": 3, "max_bytes": 9}, actor="operator")
        set_limits(session, project, {"max_bytes": 0}, actor="operator")
        session.flush()

        assert limit_of(session, config, project.id, "eval_runs") == 3
        assert limit_of(session, config, project.id, "max_bytes") == 0
        assert limit_of(session, config, other.id, "eval_runs") == 7
        set_limits(session, project, dict.fromkeys(SETTINGS), actor="operator")
        session.flush()
        assert project.limits is None
        assert limit_of(session, config, project.id, "eval_runs") == 7
        rows = session.scalars(select(Audit.details).where(Audit.action == "project.limits").order_by(Audit.id)).all()

    assert rows[0] == {"limits": {"eval_runs": 3, "max_bytes": 9}}


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"unknown": 1}, "limits"),
        ({"eval_runs": 0}, "limits.eval_runs"),
        ({"max_bytes": -1}, "limits.max_bytes"),
        ({"max_bytes": "5"}, "limits.max_bytes"),
        ({"max_bytes": True}, "limits.max_bytes"),
        ({"max_bytes": float("inf")}, "limits.max_bytes"),
        ({"max_bytes": float("nan")}, "limits.max_bytes"),
    ],
)
def test_invalid_limits_change_nothing(db: Database, limits: dict[str, Any], param: str) -> None:
    with db.write() as session:
        project = keys.ensure_project(session, "a")
        with pytest.raises(InvalidRequest) as refused:
            set_limits(session, project, limits, actor="operator")

        assert (refused.value.param, project.limits) == (param, None)

"""Tuned models: who may ask for them by name, and what a deletion takes."""

from collections.abc import Sequence

import pytest

from jobs.db.engine import Database
from jobs.registry import models
from jobs.registry.tables import TunedModel

pytestmark = pytest.mark.dialects
NAME = "ft:tiny:one:s:1"
CHECKPOINT = f"{NAME}:ckpt-step-4"


def registered(db: Database, name: str = NAME, step: int | None = None, state: str = models.READY) -> None:
    with db.write() as session:
        models.register(
            session,
            name=name,
            project_id="proj_1",
            base="tiny",
            job_id="ftjob-1",
            method="lora",
            location="training/ftjob-1/4",
            sha256="0" * 64,
            manifest={"base": "tiny"},
            checkpoint_step=step,
            state=state,
        )


def found(db: Database, name: str, project_id: str) -> TunedModel | None:
    with db.read() as session:
        return models.find(session, name, project_id)


def names(rows: Sequence[TunedModel]) -> list[str]:
    return [row.name for row in rows]


def test_a_model_is_registered_once_however_often_the_transaction_runs(db: Database) -> None:
    registered(db)
    registered(db)

    with db.read() as session:
        assert names(models.models_of_project(session, "proj_1")) == [NAME]
        assert models.results(session, ["ftjob-1", "ftjob-2"]) == {"ftjob-1": NAME}


def test_permission_grants_other_project_access_to_single_checkpoint(db: Database) -> None:
    registered(db)
    registered(db, CHECKPOINT, 4)

    assert found(db, CHECKPOINT, "proj_2") is None
    with db.write() as session:
        first = models.permit(session, CHECKPOINT, ["proj_2", "proj_2"], created_by="key")
        again = models.permit(session, CHECKPOINT, ["proj_2"], created_by="key")
        assert [row.id for row in first] == [row.id for row in again]

    permitted = found(db, CHECKPOINT, "proj_2")
    assert permitted is not None
    assert permitted.checkpoint_step == 4
    assert found(db, NAME, "proj_2") is None
    with db.read() as session:
        assert names(models.models_of_project(session, "proj_2")) == [CHECKPOINT]


def test_deleting_a_model_takes_its_checkpoints_and_its_name_stays_taken(db: Database) -> None:
    registered(db)
    registered(db, CHECKPOINT, 4)
    with db.write() as session:
        models.permit(session, CHECKPOINT, ["proj_2"], created_by="key")
        assert models.delete(session, NAME, "proj_2") is None
        deleted = models.delete(session, NAME, "proj_1")
        assert deleted is not None
        assert models.delete(session, NAME, "proj_1") is None

    assert (found(db, NAME, "proj_1"), found(db, CHECKPOINT, "proj_2")) == (None, None)
    registered(db)
    assert found(db, NAME, "proj_1") is None


def test_deleting_a_checkpoint_leaves_the_model(db: Database) -> None:
    registered(db)
    registered(db, CHECKPOINT, 4)

    with db.write() as session:
        models.delete(session, CHECKPOINT, "proj_1")

    with db.read() as session:
        assert names(models.models_of_project(session, "proj_1")) == [NAME]


def test_a_model_that_failed_its_probe_is_found_and_not_listed(db: Database) -> None:
    registered(db, state=models.FAILED_PROBE)

    with db.read() as session:
        assert names(models.models_of_project(session, "proj_1")) == []
    probed = found(db, NAME, "proj_1")
    assert probed is not None
    assert probed.state == models.FAILED_PROBE

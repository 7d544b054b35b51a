"""Versions of tuned models: their numbers, their stages, and what was in production at a time."""

import pytest
from sqlalchemy import delete, select

from jobs.db.engine import Database
from jobs.errors import Conflict, InvalidRequest
from jobs.ledger.tables import Job
from jobs.registry import model_versions, models
from jobs.registry.model_versions import Stage
from jobs.registry.tables import ModelMove, ModelVersion
from jobs.webhooks.tables import Event

pytestmark = pytest.mark.dialects
SUPPORT = [f"ft:qwen:7b:acme:support:{n}" for n in range(1, 4)]  # the name of the base has a colon
FAMILY = "qwen:7b:support"


def registered(db: Database, name: str, *, project_id: str = "proj_1", step: int | None = None) -> None:
    with db.write() as session:
        models.register(
            session,
            name=name,
            project_id=project_id,
            base=models.base_model_of(name),
            job_id=f"ftjob-{name[-1]}",
            method="lora",
            location=f"training/{name[-1]}",
            sha256="0" * 64,
            manifest={},
            checkpoint_step=step,
        )


def staged(db: Database, name: str, stage: Stage, **options: bool) -> ModelMove | None:
    with db.write() as session:
        version = model_versions.find(session, name, "proj_1", lock=True)
        assert version is not None
        return model_versions.stage(session, version, stage, actor="key:ada", reason="It is better.", **options)


def numbers(db: Database) -> dict[str, tuple[str, int]]:
    with db.read() as session:
        return {row.model: (row.family, row.number) for row in session.scalars(select(ModelVersion))}


def in_production(db: Database, time: float) -> list[str]:
    with db.read() as session:
        at_time = model_versions.stage_at(time) == "production"
        return list(session.scalars(select(ModelVersion.model).where(at_time)))


def test_results_are_numbered_within_family_of_their_project(db: Database) -> None:
    registered(db, SUPPORT[0])
    registered(db, "ft:qwen:7b:acme::4")
    registered(db, SUPPORT[1])
    registered(db, f"{SUPPORT[2]}:ckpt-step-4", step=4)
    registered(db, "ft:qwen:7b:globex:support:5", project_id="proj_2")
    registered(db, SUPPORT[1])  # a transaction that ran once more

    assert numbers(db) == {
        SUPPORT[0]: (FAMILY, 1),
        "ft:qwen:7b:acme::4": ("qwen:7b:", 1),
        SUPPORT[1]: (FAMILY, 2),
        "ft:qwen:7b:globex:support:5": (FAMILY, 1),
    }


def test_number_of_deleted_model_stays_its_own(db: Database) -> None:
    registered(db, SUPPORT[0])
    with db.write() as session:
        models.delete(session, SUPPORT[0], "proj_1")

    registered(db, SUPPORT[1])

    assert numbers(db)[SUPPORT[1]] == (FAMILY, 2)


def test_model_of_worker_of_last_release_is_numbered_with_the_following(db: Database) -> None:
    registered(db, SUPPORT[0])
    with db.write() as session:  # as such a worker leaves it
        session.execute(delete(ModelVersion))

    registered(db, SUPPORT[1])

    assert numbers(db) == {SUPPORT[0]: (FAMILY, 1), SUPPORT[1]: (FAMILY, 2)}


def test_version_names_key_that_submitted_job(db: Database) -> None:
    with db.write() as session:
        session.add(Job(id="ftjob-1", project_id="proj_1", kind="finetuning", payload={}, key_id="ada", created_at=1.0))

    registered(db, SUPPORT[0])

    with db.read() as session:
        assert session.get_one(ModelVersion, SUPPORT[0]).created_by == "key:ada"


def test_stage_is_changed_with_its_move_and_event(db: Database) -> None:
    registered(db, SUPPORT[0])

    move = staged(db, SUPPORT[0], "staging")

    assert move is not None
    assert (move.former_stage, move.stage, move.number) == ("none", "staging", 1)
    assert staged(db, SUPPORT[0], "staging") is None
    with db.read() as session:
        event = session.scalars(select(Event)).one()
    assert (event.type, event.subject_id) == ("model.version.staged", move.id)
    assert event.data == {
        "id": move.id,
        "model": SUPPORT[0],
        "former_stage": "none",
        "stage": "staging",
        "reason": "It is better.",
    }


def test_production_has_room_for_a_single_version_of_family(db: Database) -> None:
    for name in SUPPORT[:2]:
        registered(db, name)
    staged(db, SUPPORT[0], "production")

    with pytest.raises(Conflict, match="Version 1") as refused:
        staged(db, SUPPORT[1], "production")
    assert refused.value.code == "production_taken"
    staged(db, SUPPORT[1], "production", archive_existing=True)

    with db.read() as session:
        stages = {row.model: row.stage for row in session.scalars(select(ModelVersion))}
        moves = session.scalars(select(ModelMove).order_by(ModelMove.number)).all()
    assert stages == {SUPPORT[0]: "archived", SUPPORT[1]: "production"}
    assert [(move.model, move.stage) for move in moves] == [
        (SUPPORT[0], "production"),
        (SUPPORT[0], "archived"),
        (SUPPORT[1], "production"),
    ]


def test_version_in_production_at_a_time_is_found_later(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SUPPORT[:2]:
        registered(db, name)
    for time, name in ((100.0, SUPPORT[0]), (200.0, SUPPORT[1]), (300.0, SUPPORT[0])):
        monkeypatch.setattr(model_versions, "now", lambda time=time: time)
        staged(db, name, "production", archive_existing=True)

    assert [in_production(db, time) for time in (50.0, 150.0, 250.0, 350.0)] == [
        [],
        [SUPPORT[0]],
        [SUPPORT[1]],
        [SUPPORT[0]],
    ]
    with db.read() as session:
        assert model_versions.stages_at(session, SUPPORT[:2], 250.0) == {
            SUPPORT[0]: "archived",
            SUPPORT[1]: "production",
        }


@pytest.mark.parametrize("state", [models.FAILED_PROBE, models.DELETED])
def test_model_that_is_not_served_is_only_archived(db: Database, state: str) -> None:
    registered(db, SUPPORT[0])
    with db.write() as session:
        model = models.find(session, SUPPORT[0], "proj_1")
        assert model is not None
        model.state = state

    for stage in ("staging", "production"):
        with pytest.raises(InvalidRequest, match="is not served"):
            staged(db, SUPPORT[0], stage)
    assert staged(db, SUPPORT[0], "archived") is not None


def test_moves_of_project_are_bounded_and_versions_can_still_be_archived(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_versions, "MAX_MOVES", 1)
    registered(db, SUPPORT[0])
    staged(db, SUPPORT[0], "production")

    with pytest.raises(Conflict, match="at most 1 times"):
        staged(db, SUPPORT[0], "staging")
    assert staged(db, SUPPORT[0], "archived") is not None


def test_version_of_other_project_is_not_found(db: Database) -> None:
    registered(db, SUPPORT[0])

    with db.read() as session:
        assert model_versions.find(session, SUPPORT[0], "proj_2") is None
        assert model_versions.find(session, "ft:qwen:7b:acme:support:9", "proj_1") is None


def test_semantic_version_is_that_of_a_single_version_of_family(db: Database) -> None:
    for name in [*SUPPORT[:2], "ft:qwen:7b:acme::4"]:
        registered(db, name)

    def named(name: str, semantic_version: str | None) -> None:
        with db.write() as session:
            version = model_versions.find(session, name, "proj_1", lock=True)
            assert version is not None
            model_versions.name_semantic_version(session, version, semantic_version)

    named(SUPPORT[0], "1.0.0")
    named(SUPPORT[0], "1.0.0")
    named("ft:qwen:7b:acme::4", "1.0.0")  # of another family
    with pytest.raises(Conflict, match=r"Version 1 of the family 'qwen:7b:support' is 1\.0\.0 already"):
        named(SUPPORT[1], "1.0.0")
    named(SUPPORT[0], None)
    named(SUPPORT[1], "1.0.0")

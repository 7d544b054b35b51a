"""Upgrades: from nothing, again, by several at once, killed halfway; and the models say the same as the revisions."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from jobs.bootstrap import OlderSchema, migrate
from jobs.tables import Base
from migrations import check
from migrations.locks import create_index, take_turn
from tests.support.services import Postgres

pytestmark = pytest.mark.dialects

ROOT = Path(__file__).parents[3]
MIGRATE = "import sys; from jobs.bootstrap import migrate; migrate(sys.argv[1])"


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"


@pytest.fixture
def empty_postgres(postgres_server: Postgres) -> Iterator[str]:
    with postgres_server.database(migrated=False) as url:
        yield url


@pytest.fixture(params=["empty_sqlite", pytest.param("empty_postgres", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    return set(sa.inspect(engine).get_table_names())


def execute(url: str, statement: str) -> None:
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text(statement))


def migrate_to(url: str, revision: str) -> None:
    alembic = Config()
    alembic.set_main_option("script_location", str(ROOT / "migrations"))
    alembic.attributes["url"] = url
    command.upgrade(alembic, revision)


def insert(url: str, table_name: str, /, **values: object) -> None:
    """Insert a row; the columns that it needs and that are not given are empty."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    table = sa.Table(table_name, sa.MetaData(), autoload_with=engine)
    needed = [column for column in table.columns if not column.nullable and column.server_default is None]
    empty = {column.name: {} if isinstance(column.type, sa.JSON) else column.type.python_type() for column in needed}
    with engine.begin() as connection:
        connection.execute(table.insert().values(empty | values))


def rows_of(url: str, name: str) -> Sequence[sa.RowMapping]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return connection.execute(sa.Table(name, sa.MetaData(), autoload_with=engine).select()).mappings().all()


def contents(url: str) -> dict[str, tuple[str, list[object]]]:
    """Return the definition and the rows of each table."""
    metadata, engine = sa.MetaData(), sa.create_engine(url, poolclass=sa.NullPool)
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            name: (str(sa.schema.CreateTable(table)), [*connection.execute(table.select())])
            for name, table in metadata.tables.items()
        }


def test_an_upgrade_of_an_empty_database_makes_every_table_of_the_models(empty: str) -> None:
    migrate(empty)

    assert tables(empty) == set(Base.metadata.tables) | {"alembic_version"}
    assert check.drift(empty) == []


def test_a_second_upgrade_changes_nothing_and_keeps_the_rows(empty: str) -> None:
    migrate(empty)
    execute(empty, "INSERT INTO meta (key, value) VALUES ('colour', 'blue')")

    migrate(empty)

    with sa.create_engine(empty, poolclass=sa.NullPool).connect() as connection:
        assert connection.scalar(sa.text("SELECT value FROM meta")) == "blue"


def test_upgrade_gives_live_rows_their_keys_and_keys_their_permissions(empty: str) -> None:
    migrate_to(empty, "0047")
    for key, columns in (
        ("live0000", {"project_id": "proj_1"}),
        ("gone0000", {"project_id": "proj_1", "revoked_at": 1.0}),
        ("operator", {"operator": True}),
    ):
        insert(empty, "api_key", id=key, **columns)
    made = [
        ("schedule", "s_live", "key:live0000", {}),
        ("schedule", "s_gone", "key:gone0000", {}),
        ("job", "j_live", "key:live0000", {"state": "running"}),
        ("job", "j_gone", "key:gone0000", {"state": "queued"}),
        ("job", "j_done", "key:live0000", {"state": "succeeded"}),
        ("job", "j_fired", "schedule:s_live", {"state": "queued", "schedule_id": "s_live"}),
        ("job", "j_other", "operator", {"state": "queued"}),
    ]
    for number, (table, id_, actor, columns) in enumerate(made):
        insert(empty, table, id=id_, project_id="proj_1", **columns)
        action = "job.submit" if table == "job" else "schedule.create"
        insert(empty, "audit", id=number, target=id_, actor=actor, action=action)

    migrate(empty)

    assert {row["id"]: row["key_id"] for table in ("job", "schedule") for row in rows_of(empty, table)} == {
        "s_live": "live0000", "s_gone": None, "j_live": "live0000", "j_gone": None, "j_done": None,
        "j_fired": "live0000", "j_other": None,
    }  # fmt: skip
    keys = {row["id"]: (row["owner_id"], row["scopes"]) for row in rows_of(empty, "api_key")}
    assert keys["live0000"] == ("svc_acct_live0000", None)
    assert keys["operator"] == (None, ["api.deployment.read", "api.deployment.write"])


def test_upgrade_numbers_results_of_trainings_in_order_of_creation(empty: str) -> None:
    migrate_to(empty, "0054")
    insert(empty, "job", id="ftjob-1", project_id="proj_1", key_id="live0000")
    for number, (name, created_at, step) in enumerate(
        (
            ("ft:tiny:acme:support:c", 3.0, None),
            ("ft:tiny:acme:support:a", 1.0, None),
            ("ft:tiny:acme:support:a:ckpt-step-4", 1.0, 4),
            ("ft:tiny:acme::b", 2.0, None),
        )
    ):
        model = {"project_id": "proj_1", "base": "tiny", "job_id": "ftjob-1", "checkpoint_step": step}
        insert(empty, "tuned_model", id=f"ftmodel_{number}", name=name, created_at=created_at, **model)

    migrate(empty)

    assert [(row["model"], row["family"], row["number"]) for row in rows_of(empty, "model_version")] == [
        ("ft:tiny:acme:support:a", "tiny:support", 1),
        ("ft:tiny:acme::b", "tiny:", 1),
        ("ft:tiny:acme:support:c", "tiny:support", 2),
    ]
    assert {(row["stage"], row["created_by"]) for row in rows_of(empty, "model_version")} == {("none", "key:live0000")}


@pytest.mark.postgres
def test_upgrade_that_was_killed_between_two_tables_goes_on(empty_postgres: str) -> None:
    migrate_to(empty_postgres, "0048")
    execute(empty_postgres, "ALTER TABLE job ADD COLUMN key_id VARCHAR(16)")
    execute(empty_postgres, "ALTER TABLE project ADD COLUMN archived_at FLOAT(53)")

    migrate(empty_postgres)

    assert check.drift(empty_postgres) == []


@pytest.mark.verify
def test_processes_that_upgrade_at_once_all_succeed(empty: str) -> None:
    def upgrade(_: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MIGRATE, empty]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(upgrade, range(3)))

    assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * 3
    assert check.drift(empty) == []


def test_an_upgrade_that_breaks_halfway_leaves_nothing_behind(empty: str) -> None:
    execute(empty, "CREATE TABLE webhook_endpoint (id INTEGER)")  # in the way of a later step

    with pytest.raises(sa.exc.DBAPIError, match="already exists"):
        migrate(empty)

    assert tables(empty) == {"webhook_endpoint"}


@pytest.mark.parametrize("revision", ["0001", "0046"])
def test_a_database_from_before_the_baseline_is_refused_and_stays_as_it_is(empty: str, revision: str) -> None:
    migrate(empty)
    execute(empty, "INSERT INTO meta (key, value) VALUES ('colour', 'blue')")
    execute(empty, "ALTER TABLE project DROP COLUMN allow_media_urls")
    execute(empty, f"UPDATE alembic_version SET version_num = '{revision}'")
    before = contents(empty)

    with pytest.raises(OlderSchema, match="commit 1e3ca3bd"):
        migrate(empty)

    assert contents(empty) == before
    assert "1e3ca3bd" in (ROOT / "docs/operate/upgrade.md").read_text()


@pytest.mark.postgres
def test_rows_that_change_often_have_room_and_are_vacuumed_early(empty_postgres: str) -> None:
    migrate(empty_postgres)

    with sa.create_engine(empty_postgres, poolclass=sa.NullPool).connect() as connection:
        tables = sa.text("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relkind = 'r'")
        options = {name: set(given) for name, given in connection.execute(tables)}
    assert options["outbox"] == {"autovacuum_vacuum_scale_factor=0.01"}
    assert options["shard"] == {"autovacuum_vacuum_scale_factor=0.02", "fillfactor=80"}
    assert {"job", "event", "audit"} <= options.keys()


def test_the_check_passes_for_the_revisions_of_this_checkout() -> None:
    assert check.main() == 0


def test_check_fails_for_model_without_revision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = sa.MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(grown)
    grown.tables["meta"].append_column(sa.Column("colour", sa.String(8)))
    monkeypatch.setattr(check, "Base", type("Grown", (), {"metadata": grown}))

    assert check.main() == 1
    assert "colour" in capsys.readouterr().err


def test_check_fails_if_last_release_would_break(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "breaches", lambda: ["0046: ALTER TABLE job DROP COLUMN queue"])

    assert check.main() == 1
    assert "0046: ALTER TABLE job DROP COLUMN queue" in capsys.readouterr().err


@pytest.mark.postgres
def test_index_is_built_during_writes_and_replaces_unfinished_index(empty_postgres: str) -> None:
    migrate(empty_postgres)
    engine = sa.create_engine(empty_postgres, poolclass=sa.NullPool)
    execute(empty_postgres, "CREATE INDEX ix_meta_value ON meta (key)")
    execute(empty_postgres, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_meta_value'::regclass")

    with engine.connect() as turn, engine.connect() as connection:
        take_turn(turn)
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context):
            create_index("ix_meta_value", "meta", ["value"])
            execute(empty_postgres, "INSERT INTO meta (key, value) VALUES ('colour', 'blue')")
            limits = [connection.scalar(sa.text(f"SHOW {name}")) for name in ("lock_timeout", "statement_timeout")]

    [index] = [index for index in sa.inspect(engine).get_indexes("meta") if index["name"] == "ix_meta_value"]
    assert index["column_names"] == ["value"]
    assert limits == ["10s", "15min"]


def test_history_is_linear() -> None:
    assert len(ScriptDirectory(str(ROOT / "migrations")).get_heads()) == 1

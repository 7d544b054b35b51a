"""Upgrades: from nothing, again, by several at once, killed halfway; and the models say the same as the revisions."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.orm import Session

from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.evals.tables import Eval, EvalRun
from jobs.finetuning import tracking, training_events
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan
from jobs.fleet.tables import EngineDeath, Quarantine, Worker
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger import feed, ledger, outbox, shards, totals
from jobs.ledger.tables import Audit, AuditHead, Job, Outbox, Segment, Shard, Total
from jobs.retrieval import indexes
from jobs.retrieval.tables import VectorStore
from jobs.security.tables import ApiKey, Idempotency
from jobs.tables import Base
from jobs.webhooks.sending import signing_secrets
from jobs.webhooks.tables import WebhookEndpoint
from migrations import check
from migrations.locks import create_index, take_turn
from tests.support.services import Postgres
from workers.finetuning import checkpoints

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


def test_a_database_of_the_first_schema_keeps_its_jobs(empty: str) -> None:
    migrate(empty, "0001")
    facts = dict.fromkeys(("priority", "epoch", "beat", "event_seq", "total", "completed", "failed"), 0)
    facts |= {f"{kind}_tokens": 0 for kind in ("input", "cached", "output", "reasoning")}
    facts |= {"deadline": 1, "created_at": 1, "stalls": 3}
    words = {
        "id": "batch_1",
        "project_id": "p",
        "kind": "generation",
        "state": "running",
        "endpoint": "/v1/completions",
    }
    words |= {"payload": "{}", '"window"': "24h", "labels": '["red"]'}
    values = [str(value) for value in facts.values()] + [f"'{value}'" for value in words.values()]
    execute(empty, f"INSERT INTO job ({', '.join([*facts, *words])}) VALUES ({', '.join(values)})")

    migrate(empty)

    assert check.drift(empty) == []
    with sa.create_engine(empty, poolclass=sa.NullPool).connect() as connection:
        kept = connection.execute(
            sa.text("SELECT id, state, lost_leases, failed_attempts, deadline, parent_id FROM job")
        ).one()
        metadata = connection.execute(sa.select(Job.metadata_)).scalar()
    assert tuple(kept) == ("batch_1", "running", 3, 0, 1.0, None)
    assert metadata == ["red"]


def test_a_store_from_before_indexes_is_its_own_only_index(empty: str) -> None:
    migrate(empty, "0010")
    facts = {"id": "'vs_1'", "project_id": "'p'", "name": "'n'", "model": "'m'", "dimensions": "4"}
    facts |= {"shortened": "false", "chunking": "'{}'", "created_at": "1", "active_at": "1"}
    execute(empty, f"INSERT INTO vector_store ({', '.join(facts)}) VALUES ({', '.join(facts.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    engine = sa.create_engine(empty, poolclass=sa.NullPool)
    with Session(engine) as session:
        store = session.get_one(VectorStore, "vs_1")
        assert (store.root, store.current_id, indexes.is_emptied(store)) == ("vs_1", "vs_1", False)
        assert [row.id for row in indexes.all_of(session, store)] == ["vs_1"]


def test_a_shard_from_before_outcomes_says_nothing_of_them(empty: str) -> None:
    migrate(empty, "0018")
    facts = dict.fromkeys(("n", "first_line", "lines", '"offset"', "length", "epoch", "beat", "stalls"), "0")
    facts |= dict.fromkeys(("trying_times", "done", "failed"), "0") | {"progressed": "false"}
    facts |= {f"{kind}_tokens": "0" for kind in ("input", "cached", "output", "reasoning")}
    facts |= {"job_id": "'batch_1'", "state": "'done'"}
    execute(empty, f"INSERT INTO shard ({', '.join(facts)}) VALUES ({', '.join(facts.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with sa.create_engine(empty, poolclass=sa.NullPool).connect() as connection:
        assert connection.execute(sa.text("SELECT state, outcomes FROM shard")).all() == [("done", None)]


def test_an_endpoint_whose_secret_was_rotated_before_keeps_its_old_one(empty: str) -> None:
    migrate(empty, "0018")
    facts = {"id": "'we_1'", "project_id": "'p'", "name": "'n'", "url": "'https://192.0.43.8/'", "event_types": "'[]'"}
    facts |= {"secret": "'new'", "old_secret": "'old'", "old_secret_until": "9", "created_at": "1", "event_seq": "0"}
    execute(empty, f"INSERT INTO webhook_endpoint ({', '.join(facts)}) VALUES ({', '.join(facts.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        assert signing_secrets(session.get_one(WebhookEndpoint, "we_1"), 8) == ("new", "old")


def test_a_response_from_before_sizes_has_none_until_it_is_measured(empty: str) -> None:
    migrate(empty, "0021")
    execute(empty, "INSERT INTO response (id, project_id, created_at, expires_at) VALUES ('resp_1', 'p', 1, 2)")
    upload = {"id": "'u'", "project_id": "'p'", "filename": "'f'", "purpose": "'batch'", "mime_type": "'x'"}
    upload |= {"bytes": "1", "status": "'pending'", "created_at": "1", "expires_at": "2"}
    execute(empty, f"INSERT INTO upload ({', '.join(upload)}) VALUES ({', '.join(upload.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with sa.create_engine(empty, poolclass=sa.NullPool).connect() as connection:
        assert connection.execute(sa.text("SELECT id, bytes FROM response")).all() == [("resp_1", None)]
        assert connection.execute(sa.text("SELECT md5_mismatches, parts_sha256 FROM upload")).all() == [(0, None)]


def test_a_job_planned_before_times_were_counted_has_trained_for_no_time(empty: str) -> None:
    migrate(empty, "0031")
    facts = {"job_id": "'ftjob-1'"} | dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "1")
    facts |= dict.fromkeys(("rows", "validation_rows", "tokens", "steps"), "1")
    execute(empty, f"INSERT INTO finetune_plan ({', '.join(facts)}) VALUES ({', '.join(facts.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        plan = session.get_one(FinetunePlan, "ftjob-1")
        assert (plan.seconds, plan.device_seconds) == (0.0, 0.0)


def test_a_segment_from_before_does_not_say_which_answers_were_cut_off(empty: str) -> None:
    migrate(empty, "0022")
    facts = dict.fromkeys(("n", "epoch", "seq", "length"), "0") | {"job_id": "'batch_1'", "path": "'p'"}
    facts |= {f"{kind}_tokens": "0" for kind in ("input", "cached", "output", "reasoning")} | {"created_at": "1"}
    facts |= dict.fromkeys(("covered", "good"), "'\\x01'" if "postgresql" in empty else "x'01'")
    execute(empty, f"INSERT INTO segment ({', '.join(facts)}) VALUES ({', '.join(facts.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with sa.create_engine(empty, poolclass=sa.NullPool).connect() as connection:
        assert connection.execute(sa.text("SELECT good, cut_off FROM segment")).all() == [(b"\1", None)]


def test_events_from_before_the_feed_have_positions_in_the_order_of_time(empty: str) -> None:
    migrate(empty, "0024")
    for project, subject, seq, at in (("p", "b", 1, 1.0), ("p", "a", 1, 2.0), ("p", "b", 2, 3.0), ("q", "c", 1, 1.5)):
        execute(
            empty,
            "INSERT INTO event (subject_id, seq, id, project_id, type, data, created_at) "
            f"VALUES ('{subject}', {seq}, 'evt_{subject}{seq}', '{project}', 't', '{{}}', {at})",
        )

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        read = {project: [event.id for event in feed.after(session, project, 0, 9)] for project in ("p", "q")}
        assert read == {"p": ["evt_b1", "evt_a1", "evt_b2"], "q": ["evt_c1"]}
        assert (feed.bounds(session, "p"), feed.bounds(session, "q")) == ((3, 0), (1, 0))


def test_a_job_from_before_fine_tuning_keeps_its_row_beside_the_new_tables(empty: str) -> None:
    migrate(empty, "0026")
    file = {"id": "'file-1'", "project_id": "'p'", "purpose": "'fine-tune'", "filename": "'t.jsonl'", "bytes": "1"}
    file |= {"path": "'files/1'", "created_at": "1"}
    execute(empty, f"INSERT INTO file ({', '.join(file)}) VALUES ({', '.join(file.values())})")

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        training_events.record(session, "ftjob-1", "first")
        training_events.record(session, "ftjob-1", "second", data={"a": 1})
        session.commit()
        told = training_events.newest(session, "ftjob-1", before=None, limit=9)
        assert [(event.message, event.data) for event in told] == [("second", {"a": 1}), ("first", None)]
        assert session.scalar(sa.text("SELECT filename FROM file")) == "t.jsonl"


def insert(url: str, table: str, **values: object) -> None:
    """Insert a row as an earlier version wrote it, whatever the models say today."""
    names = ", ".join(f'"{name}"' for name in values)
    statement = sa.text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})")
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(statement, values)


def test_work_in_flight_goes_on_under_the_new_names_of_columns(empty: str) -> None:
    migrate(empty, "0029")
    tokens = {f"{kind}_tokens": 0 for kind in ("input", "cached", "output", "reasoning")}
    counts = {"total": 2, "completed": 0, "failed": 0, "priority": 0, "event_seq": 3, **tokens}
    job = {"project_id": "p", "kind": "batch", "endpoint": "/v1/completions", "payload": "{}", "window": "24h"}
    job |= {"created_at": 1.0, "deadline": 9.0, "queue": "gpu.generate", **counts}
    claimed = {"worker_id": "w", "epoch": 4, "beat": 7}
    insert(empty, "project", id="p", name="p", weight=1.0, allow_external=False, created_at=1.0)
    insert(empty, "job", id="batch_1", state="running", losses=2, stumbles=1, epoch=2, beat=0, **job)
    insert(empty, "job", id="batch_2", state="queued", losses=0, stumbles=0, **claimed, **job)
    shard = {
        "job_id": "batch_1",
        "first_line": 0,
        "lines": 1,
        "offset": 0,
        "length": 1,
        "done": 0,
        "failed": 0,
        **tokens,
    }
    trying = {"trying_line": 0, "trying_times": 2, "stalls": 1, "progressed": False}
    insert(empty, "shard", n=0, state="running", **claimed, **trying, **shard)
    idle = {"trying_line": None, "trying_times": 0, "stalls": 0, "progressed": False}
    insert(empty, "shard", n=1, state="pending", worker_id=None, epoch=0, beat=0, **idle, **shard)
    message = {"job_id": "batch_1", "project_id": "p", "queue": "gpu.generate", "priority": 0, "deadline": 9.0}
    message |= {"created_at": 1.0, "due_at": 1.0}
    insert(empty, "outbox", task="run", shard_n=1, rung_at=5.0, rings=3, **message)
    insert(empty, "outbox", task="run", shard_n=2, rung_at=None, rings=0, **message)
    worker = {"pool": "gpu", "host": "h", "pid": 1, "started": 1, "queues": "[]", "models": "[]", "slots": 1}
    worker |= {"state": "ready", "created_at": 1.0, "seen_at": 1.0, "restarts": 0}
    insert(empty, "worker", id="w", beat=5, place="h (devices 0)", holds='{"m": {}}', unclaimed="[]", **worker)
    death = {"model": "m", "entry": "e", "error": "died", "suspects": "[]", "lines": "[]", "created_at": 1.0}
    insert(empty, "engine_death", id="death_1", place="h", worker_id="w", starting=False, **death)
    insert(empty, "quarantine", place="h", deaths=3, tries=1, until=9.0, **death)
    insert(empty, "idempotency", project_id="p", route="r", key="k", status=0, beat_at=6.0, created_at=1.0)

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        first, second = (session.get_one(Job, name) for name in ("batch_1", "batch_2"))
        assert (first.state, first.lost_leases, first.failed_attempts) == ("running", 2, 1)
        assert ledger.claimed(session) == [("batch_2", 4, 7, "w")]
        assert ledger.heartbeat(session, second.id, 4, "w")
        assert shards.running(session) == [("batch_1", 0, 4, 7, "w")]
        shard_row = session.get_one(Shard, ("batch_1", 0))
        assert (shard_row.isolated_line, shard_row.isolated_attempts) == (0, 2)
        assert [(message.shard_n, message.publish_count) for message in outbox.unclaimed(session)] == [(1, 3)]
        assert session.scalars(sa.select(Outbox.published_at).where(Outbox.shard_n == 1)).all() == [5.0]
        assert [row.shard_n for row in outbox.due(session, "gpu.generate", "p", 5.0, 9)] == [2]
        row = session.get_one(Worker, "w")
        assert (row.heartbeat, row.host_devices, row.engines, row.other_work) == (5, "h (devices 0)", {"m": {}}, [])
        assert session.scalars(sa.select(EngineDeath.host_devices)).all() == ["h"]
        assert session.get_one(Quarantine, ("h", "m")).deaths == 3
        assert session.scalars(sa.select(Idempotency.heartbeat_at)).all() == [6.0]


def test_a_plan_from_before_trackers_has_no_file_for_tensorboard(empty: str) -> None:
    migrate(empty, "0030")
    numbers = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.0, "rows": 10, "validation_rows": 0}
    insert(empty, "finetune_plan", job_id="ftjob-1", tokens=100, steps=5, trained_tokens=None, **numbers)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        plan = session.get_one(FinetunePlan, "ftjob-1")
        assert (plan.steps, plan.tensorboard_file_id) == (5, None)
        tracking.begin(session, "ftjob-1", [tracking.MLFLOW])
        assert tracking.due(session, tracking.MLFLOW) is not None
        assert tracking.due(session, tracking.WANDB) is None


def test_a_worker_from_before_graders_does_not_say_what_its_sandbox_lacks(empty: str) -> None:
    migrate(empty, "0033")
    facts = {"queues": "[]", "models": "[]", "slots": 1, "heartbeat": 1, "created_at": 1.0, "seen_at": 1.0}
    insert(empty, "worker", id="cpu-1", pool="cpu", host="h", pid=1, started=1, state="ready", restarts=0, **facts)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        assert session.get_one(Worker, "cpu-1").sandbox_lacks is None


def test_a_checkpoint_from_before_counts_with_all_of_its_bytes(empty: str) -> None:
    migrate(empty, "0034")
    columns = {"location": "training/1", "sha256": "0", "metrics": "{}", "created_at": 1.0, "keeps_optimizer": True}
    insert(empty, "finetune_checkpoint", id="ftckpt_1", job_id="ftjob-1", step=1, bytes=7, **columns)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        assert checkpoints.keep_models(session, "ftjob-1") == ["training/1"]
        row = session.get_one(FinetuneCheckpoint, "ftckpt_1")
        assert (row.keeps_optimizer, row.bytes, row.model_bytes) == (False, 7, None)


def test_job_from_before_evals_keeps_its_row_beside_the_new_tables(empty: str) -> None:
    migrate(empty, "0035")
    tokens = {f"{kind}_tokens": 0 for kind in ("input", "cached", "output", "reasoning")}
    job = {"project_id": "p", "kind": "generation", "endpoint": "/v1/completions", "payload": "{}", "window": "24h"}
    job |= {"state": "succeeded", "created_at": 1.0, "priority": 0, "event_seq": 3, "total": 2, "completed": 2}
    job |= {"failed": 0, "lost_leases": 0, "failed_attempts": 0, "epoch": 2, "heartbeat": 0, **tokens}
    insert(empty, "job", id="batch_1", **job)

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        assert session.get_one(Job, "batch_1").completed == 2
        facts = {"project_id": "p", "name": "n", "created_at": 1.0}
        session.add(
            Eval(id="eval_1", data_source_config={"type": "custom"}, testing_criteria=[], updated_at=1.0, **facts)
        )
        session.add(EvalRun(id="evalrun_1", eval_id="eval_1", data_source={"type": "jsonl"}, bytes=1 << 40, **facts))
        session.commit()
        session.expire_all()
        assert session.get_one(EvalRun, "evalrun_1").bytes == 1 << 40
        assert session.get_one(Eval, "eval_1").metadata_ is None


def test_response_from_before_filters_has_no_model_and_no_metadata(empty: str) -> None:
    migrate(empty, "0039")
    insert(empty, "response", id="resp_1", project_id="p", created_at=1.0, expires_at=2.0, bytes=3)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        row = session.get_one(StoredResponse, "resp_1")
        assert (row.requested_model, row.model, row.metadata_, row.bytes) == (None, None, None, 3)
    assert check.drift(empty) == []


def test_stored_answers_keep_the_model_that_was_requested(empty: str) -> None:
    migrate(empty, "0042")
    facts = {"project_id": "p", "asked": "alias", "model": "small", "created_at": 1.0, "expires_at": 2.0}
    insert(empty, "chat_completion", id="chatcmpl_1", **facts)
    insert(empty, "response", id="resp_1", **facts)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        rows = session.get_one(StoredCompletion, "chatcmpl_1"), session.get_one(StoredResponse, "resp_1")
        assert [(row.requested_model, row.model) for row in rows] == [("alias", "small")] * 2
    assert check.drift(empty) == []


def test_eval_from_before_imports_was_made_here(empty: str) -> None:
    migrate(empty, "0036")
    facts = {"project_id": "p", "name": "n", "created_at": 1}
    insert(empty, "eval", id="eval_1", data_source_config="{}", testing_criteria="[]", updated_at=1, **facts)
    insert(empty, "eval_run", id="evalrun_1", eval_id="eval_1", data_source="{}", bytes=1, **facts)

    migrate(empty)

    assert check.drift(empty) == []
    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        assert session.get_one(Eval, "eval_1").imported_from is None
        assert session.get_one(EvalRun, "evalrun_1").imported_from is None


def test_a_key_from_before_operators_is_a_projects(empty: str) -> None:
    migrate(empty, "0037")
    insert(empty, "api_key", id="abcdefgh", project_id="proj_1", digest="0" * 64, created_at=1.0)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        key = session.get_one(ApiKey, "abcdefgh")
        assert (key.operator, key.project_id) == (False, "proj_1")


def test_a_key_from_before_managing_manages_none_and_knows_its_creator(empty: str) -> None:
    migrate(empty, "0043")
    for name in ("made", "other"):
        insert(empty, "api_key", id=name, project_id="proj_1", digest="0" * 64, operator=False, created_at=1.0)
    insert(empty, "audit", at=1, actor="operator", action="key.create", target="other")
    insert(empty, "audit", at=1, actor="key:other", action="key.create", target="made")
    insert(empty, "audit", at=2, actor="key:made", action="key.revoke", target="other")
    insert(empty, "audit_head", id=1, seal=7, hash="0" * 64)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        rows = {key.id: (key.manages_keys, key.created_by) for key in session.scalars(sa.select(ApiKey))}
        assert rows == {"made": (False, "other"), "other": (False, None)}
        head = session.get_one(AuditHead, 1)
        assert (head.seal, head.signed, head.signature) == (7, None, None)
    assert check.drift(empty) == []


def test_a_segment_from_before_throughput_counts_no_lines_and_keeps_its_tokens(empty: str) -> None:
    migrate(empty, "0038")
    tokens = {"input_tokens": 7, "cached_tokens": 0, "output_tokens": 5, "reasoning_tokens": 0}
    facts = {"epoch": 1, "seq": 0, "path": "p", "length": 1, "covered": b"\1", "good": b"\1", "created_at": 1.0}
    insert(empty, "segment", job_id="batch_1", n=0, **facts, **tokens)

    migrate(empty)

    with Session(sa.create_engine(empty, poolclass=sa.NullPool)) as session:
        segment = session.get_one(Segment, ("batch_1", 0, 1, 0))
        assert (segment.done, segment.failed, segment.input_tokens) == (0, 0, 7)


def test_ended_jobs_from_before_totals_count_once(empty: str) -> None:
    """Those whose end is sealed are in the sums of the upgrade; the last one, still unsealed, is counted afterwards."""
    migrate(empty, "0045")
    zeros = dict.fromkeys(("priority", "epoch", "heartbeat", "lost_leases", "event_seq", "total"), 0)
    zeros |= {"cached_tokens": 0, "reasoning_tokens": 0}
    facts = zeros | {"project_id": "p", "endpoint": "/", "payload": "{}", "window": "24h", "created_at": 1.0}
    for n, (state, seal) in enumerate([("succeeded", 1), ("succeeded", 2), ("failed", 3), ("failed", None)]):
        values = {"completed": n, "failed": 1, "input_tokens": 10, "output_tokens": 1, "lost_leases": 1}
        insert(empty, "job", **facts | values, id=f"b{n}", kind="generation", state=state, model="m" if n else None)
        insert(empty, "audit", at=1, actor="w", action="job.move", target=f"b{n}", destination=state, seal=seal)
        insert(empty, "outcome", job_id=f"b{n}", name="stop", count=5)
    insert(
        empty,
        "job",
        **facts,
        id="live",
        kind="generation",
        state="running",
        completed=9,
        failed=9,
        input_tokens=9,
        output_tokens=9,
    )
    insert(empty, "audit_head", id=1, seal=3, hash="0" * 64)

    migrate(empty)

    assert check.drift(empty) == []
    database = Database(empty)
    with database.read() as session:
        rows = session.execute(sa.select(Total.name, Total.label, Total.part, Total.count)).all()
        assert ("jobs", "generation", "succeeded", 2) in rows
        assert ("items", "", "failed", 1) in rows
    with database.snapshot() as session:
        sums = {name: totals.ended(session, name) for name in ("jobs", "items", "tokens", "outcomes", "lost_leases")}
    with database.write() as session:
        session.execute(sa.update(Audit).where(Audit.seal.is_(None)).values(seal=4))
        totals.count(session)
    with database.read() as session:
        assert sums == {name: totals.ended(session, name) for name in sums}
    database.close()
    assert sums["jobs"] == {("generation", "succeeded"): 2, ("generation", "failed"): 2}
    assert sums["items"]["m", "completed"] == 1 + 2 + 3
    assert (sums["tokens"]["m", "input"], sums["tokens"]["", "output"]) == (30, 1)
    assert sums["outcomes"]["m", "stop"] == 15
    assert sums["lost_leases"]["", ""] == 4


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


def test_the_check_fails_when_a_model_has_what_no_revision_makes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = sa.MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(grown)
    grown.tables["meta"].append_column(sa.Column("colour", sa.String(8)))
    monkeypatch.setattr(check, "Base", type("Grown", (), {"metadata": grown}))

    assert check.main() == 1
    assert "colour" in capsys.readouterr().err


def test_the_check_fails_when_the_last_release_would_break(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "breaches", lambda: ["0046: ALTER TABLE job DROP COLUMN queue"])

    assert check.main() == 1
    assert "0046: ALTER TABLE job DROP COLUMN queue" in capsys.readouterr().err


@pytest.mark.postgres
def test_an_index_is_built_beside_a_writer_and_in_place_of_one_that_was_left_unfinished(empty_postgres: str) -> None:
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


def test_history_is_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))

    assert len(ScriptDirectory.from_config(config).get_heads()) == 1

"""Create the schema: the tables of each room, with their keys and indexes. Times are unix seconds, sizes bytes."""

from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

revision = "0047"
down_revision = None
branch_labels = None
depends_on = None

#: An autoincrementing key: SQLite only does that for INTEGER.
SERIAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUEUE_ORDER: Final = ("queue", "project_id", sa.text("priority DESC"), "deadline", "id")


def columns(kind: TypeEngine[Any], required: str, optional: str = "") -> list[sa.Column[Any]]:
    """Return a column for each name; those of `optional` may be null."""
    names = f"{required} {optional}".split()
    return [sa.Column(name, kind, nullable=name in optional.split()) for name in names]


ids = partial(columns, sa.String(64))
strings = partial(columns, sa.String(255))
words = partial(columns, sa.String(16))
texts = partial(columns, sa.Text())
booleans = partial(columns, sa.Boolean())
integers = partial(columns, sa.BigInteger())
floats = partial(columns, sa.Float(53))
json = partial(columns, sa.JSON())


def create(name: str, key: str, *items: SchemaItem, **options: Any) -> None:
    """Create a table with the columns of `key` as its primary key."""
    op.create_table(name, *items, sa.PrimaryKeyConstraint(*key.split(), name=f"pk_{name}"), **options)


def where(condition: str) -> dict[str, Any]:
    """Return the options of an index that holds only the rows that meet the condition."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    _security()
    _files()
    _ledger()
    _fleet()
    _webhooks()
    _inference()
    _retrieval()
    _finetuning()
    _registry()
    _evals()


def _security() -> None:
    create(
        "project",
        "id",
        *ids("id"),
        *strings("name"),
        *booleans("allow_external"),
        *floats("weight created_at"),
        sa.Column("allow_media_urls", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.UniqueConstraint("name", name="uq_project_name"),
    )
    create("storage_usage", "project_id", *ids("project_id"), *integers("added counted"), *floats("counted_at"))
    create(
        "api_key",
        "id",
        *ids("project_id digest"),
        *words("id", "created_by"),
        *floats("created_at", "revoked_at"),
        sa.Column("operator", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("manages_keys", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Index("ix_api_key_created_by", "created_by"),
        sa.Index("ix_api_key_project_id", "project_id"),
    )
    create(
        "idempotency",
        "project_id route key",
        *ids("project_id", "digest owner"),
        *strings("key"),
        *columns(sa.String(128), "route"),
        *texts("", "body"),
        *integers("status"),
        *floats("heartbeat_at created_at"),
        sa.Index("ix_idempotency_created", "created_at"),
    )


def _files() -> None:
    create(
        "file",
        "id",
        *ids("id project_id", "sha256"),
        *strings("filename path"),
        *columns(sa.String(32), "purpose"),
        *integers("bytes"),
        *floats("created_at", "expires_at deleted_at"),
        sa.Index("ix_file_deleted", "deleted_at"),
        sa.Index("ix_file_expires", "expires_at"),
        sa.Index("ix_file_project_bytes", "project_id", "bytes"),
        sa.Index("ix_file_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_file_project_purpose", "project_id", "purpose", "created_at", "id"),
    )
    create(
        "upload",
        "id",
        *ids("id project_id", "file_id parts_sha256"),
        *strings("filename mime_type"),
        *columns(sa.String(32), "purpose"),
        *words("status"),
        *integers("bytes", "file_expires_seconds"),
        *floats("created_at expires_at"),
        sa.Column("md5_mismatches", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Index("ix_upload_project_status", "project_id", "status"),
        sa.Index("ix_upload_status_expires", "status", "expires_at"),
    )
    create(
        "upload_part",
        "id",
        *ids("id upload_id"),
        *strings("path"),
        *integers("bytes"),
        *floats("created_at"),
        sa.Index("ix_upload_part_upload_id", "upload_id"),
    )


def _ledger() -> None:
    create(
        "job",
        "id",
        *ids("id project_id endpoint"),
        *ids("", "queue input_file_id waiting_for worker_id output_file_id error_file_id retry_of"),
        *ids("", "parent_id schedule_id request_id"),
        *strings("", "model serves_as input_path idempotency_key webhook_secret"),
        *columns(sa.String(32), "kind"),
        *words("state window"),
        *texts("", "webhook_url"),
        *integers("priority epoch heartbeat lost_leases event_seq total completed failed input_tokens"),
        *integers("cached_tokens output_tokens reasoning_tokens"),
        *floats("created_at"),
        *floats("", "not_before deadline in_progress_at finalizing_at completed_at failed_at expiring_at"),
        *floats("", "expired_at cancelling_at cancelled_at"),
        *json("payload", "metadata errors"),
        sa.Column("failed_attempts", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Index("ix_job_claimed", "project_id", **where("worker_id IS NOT NULL")),
        sa.Index("ix_job_errors", "error_file_id", **where("error_file_id IS NOT NULL")),
        sa.Index("ix_job_idempotency_key", "project_id", "idempotency_key", **where("idempotency_key IS NOT NULL")),
        sa.Index("ix_job_input_file", "input_file_id"),
        sa.Index("ix_job_output", "output_file_id", **where("output_file_id IS NOT NULL")),
        sa.Index("ix_job_parent", "parent_id", "state", **where("parent_id IS NOT NULL")),
        sa.Index("ix_job_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_job_project_kind", "project_id", "kind", "created_at", "id"),
        sa.Index("ix_job_project_model", "project_id", "model", "created_at", "id"),
        sa.Index("ix_job_project_state", "project_id", "state", "created_at", "id"),
        sa.Index(
            "ix_job_scheduled", "project_id", "schedule_id", "created_at", "id", **where("schedule_id IS NOT NULL")
        ),
        sa.Index("ix_job_state_deadline", "state", "deadline"),
        sa.Index("ix_job_waiting_for_job", "id", **where("waiting_for = 'job'")),
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.02},
    )
    create(
        "job_dependency", "job_id after_id", *ids("job_id after_id"), sa.Index("ix_job_dependency_after", "after_id")
    )
    create(
        "schedule",
        "id",
        *ids("id project_id timezone input_file_id", "last_job_id"),
        *columns(sa.String(128), "cron"),
        *texts("", "last_error"),
        *floats("next_at created_at", "last_at paused_at"),
        *json("request"),
        sa.Index("ix_schedule_input_file", "input_file_id"),
        sa.Index("ix_schedule_next", "next_at"),
        sa.Index("ix_schedule_project", "project_id", "created_at", "id"),
    )
    create(
        "shard",
        "job_id n",
        *ids("job_id", "queue worker_id"),
        *words("state"),
        *booleans("progressed"),
        *integers("n first_line lines offset length epoch heartbeat stalls isolated_attempts done failed"),
        *integers("input_tokens cached_tokens output_tokens reasoning_tokens"),
        *integers("", "isolated_line"),
        *floats("", "started_at finished_at"),
        *json("", "faults outcomes"),
        sa.Index("ix_shard_job_state", "job_id", "state"),
        sa.Index("ix_shard_running", "worker_id", **where("state = 'running'")),
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.02, "fillfactor": 80},
    )
    create(
        "segment",
        "job_id n epoch seq",
        *ids("job_id"),
        *strings("path"),
        *integers("n epoch seq length input_tokens cached_tokens output_tokens reasoning_tokens"),
        *floats("created_at"),
        *json("", "outcomes"),
        *columns(sa.LargeBinary(), "covered good", "cut_off"),
        sa.Column("done", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("failed", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Index("ix_segment_created", "created_at"),
    )
    create("outcome", "job_id name", *ids("job_id"), *columns(sa.String(80), "name"), *integers("count"))
    create(
        "outbox",
        "id",
        sa.Column("id", SERIAL, autoincrement=True),
        *ids("queue job_id project_id"),
        *words("task"),
        *integers("shard_n priority publish_count"),
        *floats("deadline created_at due_at", "published_at"),
        sa.UniqueConstraint("task", "job_id", "shard_n", name="uq_outbox_task_job_id_shard_n"),
        sa.Index("ix_outbox_job", "job_id"),
        sa.Index("ix_outbox_order", *QUEUE_ORDER, **where("published_at IS NULL")),
        sa.Index("ix_outbox_published", "queue", "project_id", **where("published_at IS NOT NULL")),
        sqlite_autoincrement=True,
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.01},
    )
    create(
        "audit",
        "id",
        sa.Column("id", SERIAL, autoincrement=True),
        *ids("action", "project_id request_id hash"),
        *columns(sa.String(96), "actor"),
        *columns(sa.String(128), "target"),
        *columns(sa.String(32), "", "source destination"),
        *integers("at", "seal"),
        *json("", "details"),
        sa.UniqueConstraint("seal", name="uq_audit_seal"),
        sa.Index("ix_audit_action", "project_id", "action", "at", "id"),
        sa.Index("ix_audit_actor", "project_id", "actor", "at", "id"),
        sa.Index("ix_audit_project", "project_id", "at", "id"),
        sa.Index("ix_audit_target", "target"),
        sa.Index("ix_audit_unsealed", "id", **where("seal IS NULL")),
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.02},
    )
    create(
        "audit_head",
        "id",
        sa.Column("id", sa.BigInteger(), autoincrement=False),
        *ids("hash", "signature"),
        *integers("seal", "signed counted"),
    )
    create(
        "total",
        "name label part",
        *strings("label"),
        *columns(sa.String(80), "part"),
        *words("name"),
        *integers("count"),
    )


def _fleet() -> None:
    create(
        "worker",
        "id",
        *ids("id"),
        *strings("host", "host_devices"),
        *columns(sa.String(32), "pool"),
        *words("state"),
        *integers("pid started slots heartbeat restarts"),
        *floats("created_at seen_at"),
        *json("queues models", "engines training other_work sandbox_lacks"),
    )
    create(
        "engine_death",
        "id",
        *ids("entry worker_id"),
        *strings("host_devices model"),
        *columns(sa.String(128), "id"),
        *texts("error"),
        *booleans("starting"),
        *floats("created_at"),
        *json("suspects lines"),
        sa.Index("ix_engine_death_host_devices", "host_devices", "model"),
    )
    create(
        "quarantine",
        "host_devices model",
        *ids("entry", "trial"),
        *strings("host_devices model"),
        *texts("error"),
        *integers("deaths tries"),
        *floats("created_at until"),
        *json("suspects lines"),
    )
    create("model", "id", *ids("queue owned_by"), *strings("id"), *booleans("external"), *floats("created_at seen_at"))
    create("pause", "scope name", *strings("name"), *words("scope"), *texts("", "reason"), *floats("created_at"))
    create("measure", "name label le", *strings("label"), *words("name le"), *integers("count"), *floats("seconds"))
    create(
        "measure_change",
        "id",
        sa.Column("id", SERIAL, autoincrement=True),
        *json("changes"),
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.01},
    )
    create("meta", "key", *ids("key"), *texts("value"))


def _webhooks() -> None:
    create(
        "event",
        "subject_id seq",
        *ids("subject_id id project_id type"),
        *integers("seq", "position"),
        *floats("created_at"),
        *json("data"),
        sa.UniqueConstraint("id", name="uq_event_id"),
        sa.Index("ix_event_position", "project_id", "position", unique=True, **where("position IS NOT NULL")),
        sa.Index("ix_event_project_created", "project_id", "created_at"),
        sa.Index("ix_event_unnumbered", "subject_id", "seq", **where("position IS NULL")),
        postgresql_with={"autovacuum_vacuum_scale_factor": 0.02},
    )
    create("event_head", "project_id", *ids("project_id"), *integers("position removed"))
    create(
        "webhook_endpoint",
        "id",
        *ids("id project_id"),
        *strings("name secret", "old_secret disabled_reason"),
        *texts("url"),
        *integers("event_seq"),
        *floats("created_at", "old_secret_until updated_at disabled_at failing_since"),
        *json("event_types", "older_secrets"),
        sa.Index("ix_webhook_endpoint_project", "project_id", "created_at", "id"),
    )
    create(
        "delivery",
        "id",
        *ids("id project_id event_id", "endpoint_id job_id worker_id"),
        *strings("", "error"),
        *words("state"),
        *integers("attempts epoch", "status_code"),
        *floats("due_at created_at", "delivered_at"),
        sa.Index("ix_delivery_claimed", "worker_id", **where("worker_id IS NOT NULL")),
        sa.Index("ix_delivery_due", "due_at", **where("state = 'pending' AND worker_id IS NULL")),
        sa.Index("ix_delivery_endpoint", "endpoint_id", "created_at", "id"),
        sa.Index("ix_delivery_event", "event_id"),
        sa.Index("ix_delivery_failed", "created_at", **where("state = 'failed'")),
    )
    create(
        "attempt",
        "id",
        sa.Column("id", SERIAL, autoincrement=True),
        *ids("delivery_id"),
        *strings("", "error"),
        *integers("n", "status_code"),
        *floats("at seconds"),
        sa.Index("ix_attempt_at", "at"),
        sa.Index("ix_attempt_delivery_id", "delivery_id"),
    )


def _inference() -> None:
    create(
        "response",
        "id",
        *ids("id project_id"),
        *strings("", "requested_model model"),
        *integers("", "bytes"),
        *floats("created_at expires_at"),
        *json("", "metadata"),
        sa.Index("ix_response_expires", "expires_at"),
        sa.Index("ix_response_project_bytes", "project_id", "bytes"),
        sa.Index("ix_response_project_created", "project_id", "created_at", "id"),
    )
    create(
        "chat_completion",
        "id",
        *ids("id project_id"),
        *strings("requested_model model"),
        *integers("", "bytes"),
        *floats("created_at expires_at"),
        *json("", "metadata"),
        sa.Index("ix_chat_completion_expires", "expires_at"),
        sa.Index("ix_chat_completion_project_bytes", "project_id", "bytes"),
        sa.Index("ix_chat_completion_project_created", "project_id", "created_at", "id"),
    )
    create(
        "conversation",
        "id",
        *ids("id project_id"),
        *strings("path"),
        *integers("version", "bytes"),
        *floats("created_at"),
        *json("metadata"),
        sa.Index("ix_conversation_path", "path"),
        sa.Index("ix_conversation_project_bytes", "project_id", "bytes"),
    )
    create(
        "cached",
        "key",
        *ids("project_id", "job_id"),
        *integers("epoch tokens size"),
        *floats("created_at expires_at"),
        *columns(sa.LargeBinary(), "value"),
        *columns(sa.LargeBinary(32), "key"),
        sa.Index("ix_cached_expires", "expires_at", "size"),
        sa.Index("ix_cached_job", "job_id", **where("job_id IS NOT NULL")),
        sa.Index("ix_cached_project", "project_id", "epoch"),
    )
    create("cache_epoch", "project_id", *ids("project_id"), *integers("epoch"))
    create("cache_use", "kind", *words("kind"), *integers("hits misses"))


def _retrieval() -> None:
    create(
        "vector_store",
        "id",
        *ids("id project_id", "parent_id index_id job_id"),
        *strings("model"),
        *columns(sa.String(256), "name"),
        *texts("", "description"),
        *booleans("shortened"),
        *integers("dimensions", "expires_days"),
        *floats("created_at active_at", "expires_at replaced_at"),
        *json("chunking", "metadata"),
        sa.Index("ix_vector_store_expires", "expires_at"),
        sa.Index("ix_vector_store_parent_id", "parent_id"),
        sa.Index("ix_vector_store_project_created", "project_id", "created_at", "id"),
    )
    create(
        "vector_store_file",
        "store_id id",
        *ids("store_id id project_id job_id version", "error_code recipe"),
        *strings("filename"),
        *columns(sa.String(96), "", "document"),
        *words("status"),
        *texts("", "error_message"),
        *integers("line entries usage_bytes"),
        *floats("created_at"),
        *json("chunking", "attributes"),
        sa.Index("ix_vector_store_file_created", "store_id", "created_at", "id"),
        sa.Index("ix_vector_store_file_document", "store_id", "document"),
        sa.Index("ix_vector_store_file_file", "id"),
        sa.Index("ix_vector_store_file_job", "job_id", "line"),
        sa.Index("ix_vector_store_file_project_bytes", "project_id", "usage_bytes"),
        sa.Index("ix_vector_store_file_recipe", "recipe", **where("recipe IS NOT NULL")),
        sa.Index("ix_vector_store_file_status", "store_id", "status"),
    )
    create(
        "vector_removal",
        "id",
        sa.Column("id", SERIAL, autoincrement=True),
        *ids("store_id project_id", "file_id"),
        *strings("model"),
        *columns(sa.String(96), "", "document"),
        *words("what"),
        *integers("dimensions"),
        *floats("created_at due_at"),
        sa.Index("ix_vector_removal_store_id", "store_id"),
    )
    create(
        "source",
        "id",
        *ids("id project_id store_id", "timezone job_id"),
        *columns(sa.String(128), "", "cron"),
        *words("type status"),
        *integers("seen removed"),
        *floats("created_at", "next_at paused_at began_at last_at deleted_at"),
        *json("spec", "chunking attributes error counts last_error"),
        sa.Index("ix_source_deleted", "deleted_at"),
        sa.Index("ix_source_next", "next_at"),
        sa.Index("ix_source_store", "store_id", "created_at", "id"),
    )
    create(
        "source_item",
        "source_id digest",
        *ids("source_id digest job_id", "sha256 file_id previous_id"),
        *words("change"),
        *texts("key"),
        *json("", "fingerprint error"),
        sa.Index("ix_source_item_file", "file_id"),
        sa.Index("ix_source_item_previous", "previous_id", **where("previous_id IS NOT NULL")),
    )


def _finetuning() -> None:
    create(
        "finetune_plan",
        "job_id",
        *ids("job_id", "tensorboard_file_id"),
        *integers("n_epochs batch_size rows validation_rows tokens steps", "trained_tokens"),
        *floats("learning_rate_multiplier", "estimated_finish"),
        sa.Column("seconds", sa.Float(53), nullable=False, server_default="0"),
        sa.Column("device_seconds", sa.Float(53), nullable=False, server_default="0"),
    )
    create(
        "finetune_step",
        "job_id step",
        *ids("job_id"),
        *integers("step", "memory_bytes"),
        *floats("created_at epoch train_loss learning_rate"),
        *floats("", "train_accuracy grad_norm tokens_per_second valid_loss valid_accuracy"),
    )
    create(
        "finetune_event",
        "position",
        sa.Column("position", SERIAL, autoincrement=True),
        *ids("id job_id"),
        *columns(sa.String(8), "level"),
        *words("type"),
        *texts("message"),
        *floats("created_at"),
        *json("", "data"),
        sa.UniqueConstraint("id", name="uq_finetune_event_id"),
        sa.Index("ix_finetune_event_job", "job_id", "position"),
    )
    create(
        "finetune_checkpoint",
        "id",
        *ids("id job_id sha256"),
        *strings("location"),
        *booleans("keeps_optimizer"),
        *integers("step bytes", "model_bytes"),
        *floats("created_at"),
        *json("metrics"),
        sa.UniqueConstraint("job_id", "step", name="uq_finetune_checkpoint_job_id_step"),
    )
    create(
        "finetune_tracking",
        "job_id tracker",
        *ids("job_id", "run_id"),
        *words("tracker"),
        *integers("step failures"),
        *floats("", "due_at"),
        sa.Index("ix_finetune_tracking_due", "tracker", "due_at"),
    )
    create("dataset", "sha256", *ids("sha256"), *strings("location"), *integers("bytes"), *floats("created_at"))
    create(
        "finetune_data",
        "job_id role",
        *ids("job_id file_id", "sha256"),
        *words("role"),
        *integers("", "rows"),
        sa.Index("ix_finetune_data_file", "file_id"),
        sa.Index("ix_finetune_data_sha256", "sha256"),
    )


def _registry() -> None:
    create(
        "tuned_model",
        "id",
        *ids("id project_id job_id sha256"),
        *strings("name base location"),
        *words("method state"),
        *booleans("data_erased"),
        *integers("", "checkpoint_step"),
        *floats("created_at", "deleted_at"),
        *json("manifest"),
        sa.UniqueConstraint("name", name="uq_tuned_model_name"),
        sa.Index("ix_tuned_model_job", "job_id"),
        sa.Index("ix_tuned_model_project", "project_id", "state", "created_at", "id"),
    )
    create(
        "checkpoint_permission",
        "id",
        *ids("id project_id created_by"),
        *strings("model"),
        *floats("created_at"),
        sa.UniqueConstraint("model", "project_id", name="uq_checkpoint_permission_model_project_id"),
    )


def _evals() -> None:
    create(
        "eval",
        "id",
        *ids("id project_id"),
        *strings("name", "imported_from"),
        *floats("created_at updated_at"),
        *json("data_source_config testing_criteria", "metadata"),
        sa.Index("ix_eval_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_eval_project_imported", "project_id", "imported_from", unique=True),
        sa.Index("ix_eval_project_updated", "project_id", "updated_at", "id"),
    )
    create(
        "eval_run",
        "id",
        *ids("id eval_id project_id"),
        *strings("name", "imported_from"),
        *integers("bytes"),
        *floats("created_at"),
        *json("data_source", "metadata criteria"),
        sa.Index("ix_eval_run_eval_created", "eval_id", "created_at", "id"),
        sa.Index("ix_eval_run_eval_imported", "eval_id", "imported_from", unique=True),
        sa.Index("ix_eval_run_project_bytes", "project_id", "bytes"),
    )

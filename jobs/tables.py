"""The tables.

job ─┬─ shard ── segment          what is to be done, and what has been
     ├─ job_dependency            the jobs that it waits for
     ├─ outcome                   what became of the lines, counted, once the job has ended
     ├─ outbox                    messages that are pending
schedule ┘                        submits it again and again
     └─ event ── delivery ── attempt      what happened, and who was told; event_head, feed_cursor
vector_store ── vector_store_file · vector_removal · source ── source_item
file, upload, upload_part · project, api_key, idempotency, storage_usage
schedule ── schedule_file · response, chat_completion, conversation, request_minute, shadow_minute, shadow_answer
finetune_plan, finetune_step, finetune_event, finetune_checkpoint, finetune_data, dataset · imported_file
tuned_model ── model_version ── model_move, checkpoint_permission, base_version, alias ── alias_move, feedback
eval, eval_run · prompt ── prompt_version · named_dataset ── dataset_version ── dataset_file
drift_monitor ── drift_check · online_evaluation ── online_round
worker, model, pause, meta, measure, measure_change, total · engine_death, quarantine · cached, cache_epoch, cache_use
audit, audit_head
account, invite, user_group, group_member, service_account, role, role_assignment, model_permission
usage_minute, usage_change, stored_bytes_day, price, spend, reservation, spend_limit, spend_alert, rate_limit
"""

from jobs.datasets.tables import DatasetFile, DatasetVersion, NamedDataset
from jobs.db.base import Base, row_of, table_of
from jobs.evals.tables import Eval, EvalRun
from jobs.files.tables import File, Upload, UploadPart
from jobs.finetuning.tables import (
    Dataset,
    FinetuneCheckpoint,
    FinetuneData,
    FinetuneEvent,
    FinetunePlan,
    FinetuneStep,
    FinetuneTracking,
    ImportedFile,
)
from jobs.fleet.tables import EngineDeath, Measure, MeasureChange, Meta, Model, Pause, Quarantine, Worker
from jobs.inference.tables import (
    CacheEntry,
    CacheEpoch,
    CacheUse,
    Conversation,
    RequestMinute,
    ShadowAnswer,
    ShadowMinute,
    StoredCompletion,
    StoredResponse,
)
from jobs.ledger.tables import (
    TOKENS,
    Audit,
    AuditHead,
    Job,
    JobDependency,
    Outbox,
    Outcome,
    Segment,
    Shard,
    Total,
)
from jobs.monitoring.tables import DriftCheck, DriftMonitor, OnlineEvaluation, OnlineRound
from jobs.prompts.tables import Prompt, PromptVersion
from jobs.registry.tables import (
    Alias,
    AliasMove,
    BaseVersion,
    CheckpointPermission,
    Feedback,
    ModelMove,
    ModelVersion,
    TunedModel,
)
from jobs.retrieval.tables import Source, SourceItem, VectorRemoval, VectorStore, VectorStoreFile
from jobs.schedules.tables import Schedule, ScheduleFile
from jobs.security.tables import (
    Account,
    AccountGroup,
    ApiKey,
    GroupMember,
    Idempotency,
    Invite,
    ModelPermission,
    Project,
    Role,
    RoleAssignment,
    ServiceAccount,
    SignInToken,
    StorageUsage,
)
from jobs.usage.tables import (
    Price,
    RateLimit,
    Reservation,
    Spend,
    SpendAlert,
    SpendLimit,
    StoredBytesDay,
    UsageChange,
    UsageMinute,
)
from jobs.webhooks.tables import Attempt, Delivery, Event, EventHead, FeedCursor, WebhookEndpoint

__all__ = [
    "TOKENS",
    "Account",
    "AccountGroup",
    "Alias",
    "AliasMove",
    "ApiKey",
    "Attempt",
    "Audit",
    "AuditHead",
    "Base",
    "BaseVersion",
    "CacheEntry",
    "CacheEpoch",
    "CacheUse",
    "CheckpointPermission",
    "Conversation",
    "Dataset",
    "DatasetFile",
    "DatasetVersion",
    "Delivery",
    "DriftCheck",
    "DriftMonitor",
    "EngineDeath",
    "Eval",
    "EvalRun",
    "Event",
    "EventHead",
    "FeedCursor",
    "Feedback",
    "File",
    "FinetuneCheckpoint",
    "FinetuneData",
    "FinetuneEvent",
    "FinetunePlan",
    "FinetuneStep",
    "FinetuneTracking",
    "GroupMember",
    "Idempotency",
    "ImportedFile",
    "Invite",
    "Job",
    "JobDependency",
    "Measure",
    "MeasureChange",
    "Meta",
    "Model",
    "ModelMove",
    "ModelPermission",
    "ModelVersion",
    "NamedDataset",
    "OnlineEvaluation",
    "OnlineRound",
    "Outbox",
    "Outcome",
    "Pause",
    "Price",
    "Project",
    "Prompt",
    "PromptVersion",
    "Quarantine",
    "RateLimit",
    "RequestMinute",
    "Reservation",
    "Role",
    "RoleAssignment",
    "Schedule",
    "ScheduleFile",
    "Segment",
    "ServiceAccount",
    "ShadowAnswer",
    "ShadowMinute",
    "Shard",
    "SignInToken",
    "Source",
    "SourceItem",
    "Spend",
    "SpendAlert",
    "SpendLimit",
    "StorageUsage",
    "StoredBytesDay",
    "StoredCompletion",
    "StoredResponse",
    "Total",
    "TunedModel",
    "Upload",
    "UploadPart",
    "UsageChange",
    "UsageMinute",
    "VectorRemoval",
    "VectorStore",
    "VectorStoreFile",
    "WebhookEndpoint",
    "Worker",
    "row_of",
    "table_of",
]

"""The tables.

job ─┬─ shard ── segment          what is to be done, and what has been
     ├─ outcome                   what became of the lines, counted, once the job has ended
     ├─ outbox                    doorbells owed to the broker
schedule ┘                        submits it again and again
     └─ event ── delivery ── attempt      what happened, and who was told
vector_store ── vector_store_file · vector_removal · source ── source_item
file, upload, upload_part · response, chat_completion, conversation · project, api_key, idempotency, storage_usage
worker, model, pause, meta, measure · engine_death, quarantine · cached, cache_epoch, cache_use · audit, audit_head
"""

from jobs.models.access import ApiKey, Idempotency, Project, StorageUsage
from jobs.models.audit import Audit, AuditHead
from jobs.models.base import Base, row_of, table_of
from jobs.models.cached import Cached, CacheEpoch, CacheUse
from jobs.models.completion import KeptCompletion
from jobs.models.conversation import Conversation
from jobs.models.files import File, Upload, UploadPart
from jobs.models.job import TOKENS, Job, Outbox, Outcome, Schedule, Segment, Shard
from jobs.models.response import KeptResponse
from jobs.models.source import Source, SourceItem
from jobs.models.vector import VectorRemoval, VectorStore, VectorStoreFile
from jobs.models.webhooks import Attempt, Delivery, Event, WebhookEndpoint
from jobs.models.worker import EngineDeath, Measure, Meta, Model, Pause, Quarantine, Worker

__all__ = [
    "TOKENS",
    "ApiKey",
    "Attempt",
    "Audit",
    "AuditHead",
    "Base",
    "CacheEpoch",
    "CacheUse",
    "Cached",
    "Conversation",
    "Delivery",
    "EngineDeath",
    "Event",
    "File",
    "Idempotency",
    "Job",
    "KeptCompletion",
    "KeptResponse",
    "Measure",
    "Meta",
    "Model",
    "Outbox",
    "Outcome",
    "Pause",
    "Project",
    "Quarantine",
    "Schedule",
    "Segment",
    "Shard",
    "Source",
    "SourceItem",
    "StorageUsage",
    "Upload",
    "UploadPart",
    "VectorRemoval",
    "VectorStore",
    "VectorStoreFile",
    "WebhookEndpoint",
    "Worker",
    "row_of",
    "table_of",
]

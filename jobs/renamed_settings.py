"""Former names of settings, without their prefix: what they are called now, or the value that is fixed now."""

from typing import Final

RENAMED: Final = {
    "BATCH_MAX_EMBEDDING_INPUTS": "BATCH_MAX_LINES",
    "INTERACTIVE_BESIDE": "BATCH_REQUESTS_WHILE_INTERACTIVE",
    "OPERATOR_KEY": "ADMIN_KEY",
    "RERING_SECONDS": "REDELIVERY_SECONDS",
}

FIXED: Final = {
    "BATCH_MAX_LINE_BYTES": "32 MiB",
    "BEAT_SECONDS": "1/6 of NIGHTMILL_LEASE_SECONDS",
    "CANCEL_GRACE_SECONDS": "3 seconds",
    "ENGINE_MAX_ANSWER_BYTES": "16 MiB",
    "FINETUNE_MAX_STEPS": "100,000 steps",
    "FINISH_TRIES": "5 tries",
    "HEARTBEAT_SECONDS": "1/6 of NIGHTMILL_LEASE_SECONDS",
    "INGEST_SHARD_FILES": "32 files",
    "INTERACTIVE_UNREAD": "16,384 chunks",
    "INTERACTIVE_UNREAD_BYTES": "8 MiB",
    "INTERACTIVE_WAITING_BYTES": "192 MiB",
    "ITEM_TRIES": "3 tries",
    "MEDIA_SECONDS": "20 seconds",
    "PARSE_MAX_PAGES": "5,000 pages",
    "PARSE_MAX_TOKENS": "5,000,000 tokens",
    "PARSE_MEMORY_BYTES": "1 GiB",
    "PARSE_TEXT_BYTES": "64 MiB",
    "PART_MAX_BYTES": "64 MiB",
    "REWRITE_SECONDS": "5 seconds",
    "SHARDS_IN_FLIGHT": "2 shards",
    "SHARD_BYTES": "4 MiB",
    "SOURCE_FETCH_SECONDS": "60 seconds",
    "STALLS_BEFORE_CAREFUL": "2 lost leases",
    "STALLS_BEFORE_ISOLATION": "2 lost leases",
    "STORE_MAX_FILES": "10,000 files",
    "TICK_SECONDS": "0.1 seconds",
    "UPLOAD_EXPIRY_SECONDS": "1 hour",
    "UPLOAD_MAX_BYTES": "8 GiB",
    "WEBHOOK_CONNECT_SECONDS": "5 seconds",
    "WEBHOOK_DISABLE_SECONDS": "5 days",
    "WINDOW_MIN_SECONDS": "60 seconds",
    "WORKER_NICE": "10",
}

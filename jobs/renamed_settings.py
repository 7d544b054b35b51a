"""Former names of settings, without their prefix: what they are called now, or the value that is fixed now."""

from typing import Final

RENAMED: Final = {
    "BEAT_SECONDS": "HEARTBEAT_SECONDS",
    "INTERACTIVE_BESIDE": "BATCH_REQUESTS_WHILE_INTERACTIVE",
    "RERING_SECONDS": "REDELIVERY_SECONDS",
}

FIXED: Final = {
    "ENGINE_MAX_ANSWER_BYTES": "16 MiB",
    "INTERACTIVE_UNREAD": "16,384 chunks",
    "PARSE_MAX_PAGES": "5,000 pages",
    "PARSE_MAX_TOKENS": "5,000,000 tokens",
    "PARSE_TEXT_BYTES": "64 MiB",
    "PART_MAX_BYTES": "64 MiB",
    "STALLS_BEFORE_CAREFUL": "2 lost leases",
    "STALLS_BEFORE_ISOLATION": "2 lost leases",
    "STORE_MAX_FILES": "10,000 files",
    "TICK_SECONDS": "0.1 seconds",
    "UPLOAD_EXPIRY_SECONDS": "1 hour",
    "UPLOAD_MAX_BYTES": "8 GiB",
    "WEBHOOK_CONNECT_SECONDS": "5 seconds",
    "WORKER_NICE": "10",
}

"""The names that settings had before, and those that they have now, without their prefix."""

from typing import Final

RENAMED: Final = {
    "BEAT_SECONDS": "HEARTBEAT_SECONDS",
    "INTERACTIVE_BESIDE": "BATCH_REQUESTS_WHILE_INTERACTIVE",
    "RERING_SECONDS": "REDELIVERY_SECONDS",
    "STALLS_BEFORE_CAREFUL": "STALLS_BEFORE_ISOLATION",
}

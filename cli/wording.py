"""Write durations and the status of a model for people. Imports nothing heavy, because the supervisor uses it."""

import time
from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """Return `seconds` in words, such as `3 min 20 s`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def model_progress(status: Mapping[str, Any]) -> str:
    """Return a job's `model_status`, or an entry of `loading` in `GET /readyz`, in words."""
    if status.get("status") == "no_worker":
        return f"no live worker serves {status['model']}"
    model = status["model"] or "its models"
    return f"loading {model} ({status['phase']}), {duration(max(time.time() - status['since'], 0.0))} so far"

"""Write the status of a model for people. Imports nothing heavy, because the supervisor uses it."""

import time
from collections.abc import Mapping
from typing import Any

from jobs.clock import duration


def model_progress(status: Mapping[str, Any]) -> str:
    """Return a job's `model_status`, or an entry of `loading` in `GET /statusz`, in words."""
    if status.get("status") == "no_worker":
        return f"no live worker serves {status['model']}"
    model = status["model"] or "its models"
    return f"loading {model} ({status['phase']}), {duration(max(time.time() - status['since'], 0.0))} so far"

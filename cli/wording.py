"""Write kinds of jobs and the status of a model for people. Imports nothing heavy, because the supervisor uses it."""

import time
from collections.abc import Mapping
from typing import Any, Final

from jobs.clock import duration

#: The kinds of jobs in the words of the console.
KINDS: Final[Mapping[str, str]] = {
    "generation": "batch",
    "embedding": "batch of embeddings",
    "reranking": "batch of rankings",
    "response": "background response",
    "ingestion": "files of a vector store",
    "finetuning": "fine-tuning",
    "model_import": "import of a model",
    "evaluation": "evaluation run",
    "sampling": "samples of an evaluation",
    "promotion": "promotion",
    "drift_check": "check for drift",
    "pipeline": "pipeline",
    "pipeline_step": "step of a pipeline",
    "dataset": "version of a dataset",
}


def name_kind(kind: str) -> str:
    """Return the words for a kind; the kind itself where only another version knows it."""
    return KINDS.get(kind, kind)


def kind_of(text: str) -> str:
    """Return the kind that is meant: by its words, or by its name in the API."""
    return next((kind for kind, words in KINDS.items() if words == text), text)


def model_progress(status: Mapping[str, Any]) -> str:
    """Return a job's `model_status`, or an entry of `loading` in `GET /statusz`, in words."""
    if status.get("status") == "no_worker":
        return f"no live worker serves {status['model']}"
    model = status["model"] or "its models"
    return f"loading {model} ({status['phase']}), {duration(max(time.time() - status['since'], 0.0))} so far"

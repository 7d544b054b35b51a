"""The names of tuned models: `ft:<base>:<project slug>:<suffix>:<id>`, and of checkpoints `…:ckpt-step-<n>`.

The id is a part of the job's id, so the name of a job's model is known before the model exists.
"""

import re
from typing import Final

from jobs.errors import InvalidRequest
from jobs.registry.models import CHECKPOINT, NAME_LENGTH, NAME_PREFIX

JOB_PREFIX: Final = "ftjob-"
_SLUG_LENGTH: Final = 32
_ID_LENGTH: Final = 10
#: What a checkpoint's name adds to the model's.
_CHECKPOINT_LENGTH: Final = len(CHECKPOINT) + 10


def slug(project_name: str) -> str:
    """Return a project's name as names of models and `organization_id` spell it."""
    return _slug(project_name)[:_SLUG_LENGTH] or "project"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def model_name(base: str, project_name: str, suffix: str | None, job_id: str) -> str:
    """Return the name of the model that a job results in. Raises InvalidRequest when it would be too long."""
    number = job_id.removeprefix(JOB_PREFIX)[:_ID_LENGTH]
    name = f"{NAME_PREFIX}{base}:{slug(project_name)}:{_slug(suffix or '')}:{number}"
    if len(name) + _CHECKPOINT_LENGTH > NAME_LENGTH:
        raise InvalidRequest("The model's name would be too long.", param="suffix", code="string_above_max_length")
    return name


def checkpoint_name(model: str, step: int) -> str:
    """Return the name of a model's checkpoint."""
    return f"{model}{CHECKPOINT}{step}"

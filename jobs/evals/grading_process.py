"""Grade one sample in a child process, for a request that waits.

    Question ─stdin─▶ python -m workers.evals ─stdout─▶ the requests to models that must be answered first, or the grade
    Question with their answers ───────────────────▶ the grade

The definition, the item and the sample are a client's: whatever they cost, they cost the child.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec

from jobs.evals.graders.base import Grade, ModelAnswer, ModelRequest
from jobs.platform import children
from jobs.platform.children import ChildLimits

MODULE: Final = "workers.evals"
#: Of all graders of an item, and of a processor; python graders have processes and limits of their own.
CPU_SECONDS: Final = 120
_MEMORY_BYTES: Final = 2 << 30
#: Bytes of the requests to models.
_ANSWER_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class GradingTask:
    """A grader's definition, and what it grades. `wordnet` is the setting; `answers` are those of models, by key."""

    project: str
    grader: dict[str, Any]
    item: dict[str, Any]
    model_sample: str
    embedding_model: str | None
    wordnet: str
    answers: dict[str, ModelAnswer] | None = None


@dataclass(frozen=True, slots=True)
class GradingOutcome:
    """The grade, or the requests that must be answered before there is one."""

    grade: Grade | None = None
    requests: list[ModelRequest] = field(default_factory=list)


def ask(question: GradingTask, seconds: float) -> bytes:
    """Return the encoded outcome of a child that runs for at most `seconds`. Raises: ChildFailed."""
    limits = ChildLimits(seconds, CPU_SECONDS, _MEMORY_BYTES, _ANSWER_BYTES)
    return children.run(MODULE, [msgspec.json.encode(question)], limits)


decode_question: Final = msgspec.json.Decoder(GradingTask).decode


def encode_outcome(outcome: GradingOutcome) -> bytes:
    """Return an outcome as JSON; half of a surrogate pair, which a sample in JSON may have, becomes a question mark."""
    return json.dumps(asdict(outcome), ensure_ascii=False).encode(errors="replace")


def decode_outcome(raw: bytes) -> GradingOutcome:
    return msgspec.convert(json.loads(raw), GradingOutcome)

"""The cases of a run: each item with a sample of it and what judges answered about that, in the order of the items.

    items       12 {"item": …}      13 {"item": …}                         read by the source of the run
    samples     12.0.  12.1.        13.0.  13.1.                           records of a job of kind `sampling`
    judgements  12.0.key  12.1.key  13.1.key                               records of another job of that kind

All of them are read once, side by side: memory holds one item, and one shard's records of each job.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from jobs.batches.lines import Bad
from jobs.evals.graders.base import ModelAnswer
from jobs.evals.runs import Evaluation, Sampling, steps_of
from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.ledger.tables import Job
from workers.batches.finishing import outputs_of
from workers.evals.imported_run import ImportedRun
from workers.evals.item_sources import ItemSource, LineItems, RetriedRun, RunCase, StoredChatItems, StoredResponseItems
from workers.evals.sampled_model import add_sample, context_length_of
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context

_BY_TYPE: Final[Mapping[str | None, type[ItemSource]]] = {
    None: LineItems,
    "stored_completions": StoredChatItems,
    "responses": StoredResponseItems,
}
_decode = msgspec.json.Decoder(dict).decode


def source_of(context: Context, run: Job, *, checked: bool) -> ItemSource:
    """Return the items of a run."""
    payload = Evaluation.model_validate(run.payload)
    if payload.imported is not None:
        kind: type[ItemSource] = ImportedRun
    else:
        kind = RetriedRun if payload.retried is not None else _BY_TYPE[payload.stored]
    return kind(context, run, payload, checked=checked)


def judged_cases(context: Context, run: Job) -> Iterator[RunCase | Bad]:
    """Yield the cases of a run with their samples and judgements, and the errors of items. Raises Abandoned."""
    judges = [(criterion, Records(context, job)) for criterion, job in _steps(context, run) if criterion is not None]
    for case in sampled_cases(context, run):
        if isinstance(case, RunCase):
            for criterion, records in judges:
                for key, answer in records.take(case).items():
                    case.row.judgements.setdefault(criterion, {})[key] = answer.status, answer.body
        yield case


def sampled_cases(context: Context, run: Job) -> Iterator[RunCase | Bad]:
    """Yield the cases of a run with their samples, and the errors of items. Raises Abandoned."""
    sampled = Evaluation.model_validate(run.payload).sampled
    source = source_of(context, run, checked=sampled is None)  # else they were checked before the model was asked
    if sampled is None:
        yield from source.cases()
        return
    (asked,) = (job for criterion, job in _steps(context, run) if criterion is None)
    records, context_length = Records(context, asked), context_length_of(models_of(context), asked.model or "")
    for case in source.cases():
        if isinstance(case, RunCase) and case.needs_sample:
            answer = records.take(case).get("", ModelAnswer(500, {}))
            add_sample(case.row, case.index, sampled, answer, context_length)
        yield case


def models_of(context: Context) -> Registry:
    """Return the models of the models file. Raises Abandoned, while the file cannot be used."""
    try:
        return context.models.now()
    except ModelsFileError:
        raise Abandoned(5.0, "model") from None


def name_of(case: RunCase, key: str = "") -> str:
    """Return the `custom_id` of a request about a case."""
    return f"{case.row.number}.{case.index}.{key}"


def _parts_of(name: str) -> tuple[tuple[int, int], str]:
    """Return the number of the item, the index of the sample, and the key in a `custom_id`."""
    number, index, key = name.split(".", 2)
    return (int(number), int(index)), key


def _steps(context: Context, run: Job) -> list[tuple[int | None, Job]]:
    """Return the jobs that asked models for a run: those of judges with their criterion, that of the sampled model."""
    with context.db.read() as session:
        steps = steps_of(session, [run.id])[run.id]
    return [(Sampling.model_validate(step.payload).criterion, step) for step in steps]


class Records:
    """The answers of a job that has ended, taken in the order of their requests."""

    def __init__(self, context: Context, job: Job) -> None:
        self._lines = map(_decode, outputs_of(context, job.id))
        self._next = next(self._lines, None)

    def take(self, case: RunCase) -> dict[str, ModelAnswer]:
        """Return the answers about a case by their keys.

        Those about earlier cases are left out: their items were deleted meanwhile.
        """
        taken = {}
        while self._next is not None:
            sample, key = _parts_of(self._next["custom_id"])
            if sample > (case.row.number, case.index):
                break
            if sample == (case.row.number, case.index):
                taken[key] = _answer(self._next)
            self._next = next(self._lines, None)
        return taken


def _answer(output: Mapping[str, Any]) -> ModelAnswer:
    """Return the answer of an output line; one without a response is an error of the server."""
    response = output["response"]
    if response is None:
        return ModelAnswer(500, {"error": output["error"]})
    body = response["body"]
    return ModelAnswer(response["status_code"], body if isinstance(body, dict) else {})

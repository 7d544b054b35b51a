"""Runs of evals: their kinds of jobs, what a run was asked for, and the jobs that it is made of.

    sampling  the sampled model answers each item ──after──┬─▶ sampling  one for each model of a grader ─┬─after─▶ run
              (absent where the items have their samples)  └──────────────────────────────────────────────┘

All jobs of a run are submitted in one transaction. Those of kind `sampling` name the run as their parent: to cancel the
run cancels them. Each is planned when its predecessors have completed, and reads the items and their records.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.evals.graders import Grader, parse_grader
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import dependencies, kinds, ledger
from jobs.ledger.kinds import Payload
from jobs.ledger.tables import Job
from jobs.retrieval.searches import DEFAULT_LIMIT

NAME: Final = "evaluation"
SAMPLING: Final = "sampling"
SAMPLING_PREFIX: Final = "sampling_"
PREFIX: Final = "evalrun_"
ITEM_PREFIX: Final = "outputitem_"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "eval.run.succeeded",
    "failed": "eval.run.failed",
    "expired": "eval.run.failed",
    "cancelled": "eval.run.canceled",
}

#: Results of the searches of a run, all items together: their texts are stored.
MAX_RESULTS: Final = 500_000
#: The statuses of an item of a run that has been graded.
PASSED: Final = "pass"
FAILED: Final = "fail"
ERRORED: Final = "error"


class Retrieval(BaseModel):
    """A search of a vector store. `options` are fields of `jobs.retrieval.searches.Search`.

    Without an `index_id` the index in use is searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector_store_id: str
    index_id: str | None = None
    options: dict[str, Any] = {}

    @property
    def max_items(self) -> int:
        """Return for how many items a run may search."""
        return MAX_RESULTS // int(self.options.get("limit", DEFAULT_LIMIT))


class SampledPrompt(BaseModel):
    """The version of a prompt that a run samples with. The strings in `variables` are templates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: int
    hash: str
    bytes: int
    content: dict[str, Any]
    variables: dict[str, Any]


class Sampled(BaseModel):
    """The request to a model about each item, made `n` times.

    The messages are those of `template`, of `prompt`, or those that each item has at the path `reference`. `params` are
    OpenAI's sampling parameters. The text whose likelihood is asked for, or that is searched for as `retrieval` says,
    is that of the template `text`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    model: str
    template: list[dict[str, Any]] | None = None
    reference: str | None = None
    prompt: SampledPrompt | None = None
    text: str | None = None
    retrieval: Retrieval | None = None
    params: dict[str, Any] = {}
    n: int = 1


class Imported(BaseModel):
    """A run that was made elsewhere: its id there, and the model that was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    model: str | None = None


class Evaluation(Payload):
    """Grade the items at the path `items` by `criteria`, after a model has answered them where they are `sampled`.

    `embedding_model` is the deployment's, which some graders ask. With `imported` the lines of `items` are output items
    that have their grades. With `stored` they are the ids of stored answers of that type. With `retried`, the id of an
    ended run, the items and grades are those of that run: what errored or is missing is graded again.
    """

    eval_id: str
    items: str
    item_schema: dict[str, Any]
    criteria: list[dict[str, Any]]
    sampled: Sampled | None = None
    embedding_model: str | None = None
    stored: Literal["stored_completions", "responses"] | None = None
    retried: str | None = None
    imported: Imported | None = None

    @property
    def graders(self) -> list[Grader]:
        """Return the graders of the criteria; none of a run that was graded elsewhere."""
        definitions = self.criteria if self.imported is None else []
        return [parse_grader(definition, is_stored=True) for definition in definitions]


class Sampling(Payload):
    """Ask `model` what a run needs: answers to its items, or the judgements of the criterion at an index."""

    run_id: str
    model: str
    criterion: int | None = None


def items_path(run_id: str) -> str:
    """Return where the items lie that came in the body of a request."""
    return f"jobs/{run_id}/items.jsonl"


def submit(
    session: Session,
    run: EvalRun,
    payload: Evaluation,
    *,
    actor: str,
    file: File | None = None,
    key_id: str | None = None,
    request_id: str | None = None,
    **columns: Any,
) -> Job:
    """Submit the jobs of a run with its row, in the caller's transaction. `file` has the items, where there is one.

    `columns` are of the run's own job.

    Raises: InvalidRequest, where the run would wait for too many jobs.
    """
    common = {"project_id": run.project_id, "input_file_id": file.id if file else None, **kinds.of(NAME).times(now())}
    common |= {"key_id": key_id, "request_id": request_id}
    steps = steps_to_make(run.id, payload)
    if len(steps) > dependencies.MAX_DEPENDENCIES:
        message = f"A run asks at most {dependencies.MAX_DEPENDENCIES} models: the graders name {len(steps)}."
        raise InvalidRequest(message, param="testing_criteria", code="too_many_models")
    made: list[Job] = []
    for endpoint, step in steps:
        after = [made[0].id] if made and payload.sampled is not None else []
        job = Job(
            id=new_id(SAMPLING_PREFIX),
            kind=SAMPLING,
            endpoint=endpoint,
            model=step.model,
            payload=step.model_dump(mode="json", exclude_defaults=True),
            parent_id=run.id,
            **common,
        )
        made.append(ledger.submit(session, job, actor=actor, after=after))
    session.add(run)
    job = Job(
        id=run.id,
        kind=NAME,
        payload=payload.model_dump(mode="json", exclude_defaults=True),
        input_path=payload.items,
        **common,
        **columns,
    )
    if run.metadata_ is not None:  # JSON null is not NULL
        job.metadata_ = run.metadata_
    return ledger.submit(session, job, actor=actor, after=[step.id for step in made])


def steps_to_make(run_id: str, payload: Evaluation) -> list[tuple[str, Sampling]]:
    """Return the endpoint and the payload of each job that asks a model; the sampled model's comes first."""
    sampled = payload.sampled
    steps = [(sampled.endpoint, Sampling(run_id=run_id, model=sampled.model))] if sampled else []
    for index, grader in enumerate(payload.graders):
        for endpoint, model in grader.models(payload.embedding_model):
            steps.append((endpoint, Sampling(run_id=run_id, model=model, criterion=index)))
    return steps


def steps_of(session: Session, run_ids: Sequence[str]) -> dict[str, list[Job]]:
    """Return the jobs of kind `sampling` of each of these runs: the sampled model's, then those of each criterion."""
    jobs: dict[str, list[Job]] = {run_id: [] for run_id in run_ids}
    statement = select(Job).where(Job.parent_id.in_(run_ids), Job.kind == SAMPLING).order_by(Job.id)
    for job in sorted(session.scalars(statement), key=lambda job: job.payload.get("criterion", -1)):
        jobs[job.parent_id or ""].append(job)
    return jobs


def item_id(run_id: str, number: int) -> str:
    """Return the id of the output item with this number in a run, counted from 0."""
    return f"{ITEM_PREFIX}{run_id.removeprefix(PREFIX)}{number:06x}"


def item_number(run_id: str, id_: str) -> int | None:
    """Return the number of an output item of a run; None for an id of anything else."""
    digits = id_.removeprefix(item_id(run_id, 0)[:-6])
    is_number = id_ != digits and digits.isascii() and len(digits) >= 6 and all(c in "0123456789abcdef" for c in digits)
    return int(digits, 16) if is_number and len(digits) <= 12 else None

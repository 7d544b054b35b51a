"""Pipelines: jobs that are made one after another, each from results of those before it.

    pipeline ──after──▶ step, one job for each ──after──▶ steps before it
                          └─ released: the references of its request are filled, its own job is made (a batch, …),
                             and the step waits for that job ──▶ completed, and later steps are released

A pipeline and its steps are jobs without lines, which `jobs.ledger.dependencies` releases, fails and cancels: a step
fails with its job, the steps behind it are never made, and the pipeline fails with its first step. The job of a step
is made in the transaction in which the step begins to wait for it. So it is made once, whenever a process is killed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import InvalidRequest, PermissionDenied
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.ledger import audit, ledger
from jobs.ledger.kinds import Kind, Payload, Retry
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.pipelines import placeholders, steps
from jobs.pipelines.steps import Submitter
from jobs.queues import Queue
from jobs.security.ended_keys import REFUSALS, find_refusal
from jobs.settings import Settings
from jobs.usage import stored_bytes
from jobs.usage.project_limits import limit_of

NAME: Final = "pipeline"
PREFIX: Final = "pipe_"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "pipeline.completed",
    "failed": "pipeline.failed",
    "cancelled": "pipeline.cancelled",
}
STEP: Final = "pipeline_step"
STEP_PREFIX: Final = "step_"
PERMISSION: Final = "api.pipelines.write"
MAX_STEPS: Final = 50
#: Bytes of the requests of all steps.
MAX_BYTES: Final = 1 << 20
#: Pipelines of a project that have not ended.
MAX_LIVE: Final = 100


class StepDefinition(BaseModel):
    """A step of a new pipeline: its checked request, and the names of the steps that it waits for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    request: dict[str, Any]
    after: list[str]


class PipelineRequest(BaseModel):
    """A checked request for a pipeline, as schedules store it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    steps: list[StepDefinition]
    metadata: dict[str, str] | None = None


class StepEntry(BaseModel):
    """A step in the payload of its pipeline. `id` is the id of its job, which an earlier pipeline may have made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    after: list[str]
    id: str


class Pipeline(Payload):
    """Wait for the steps, which stand in the order of their definition."""

    name: str | None = None
    steps: list[StepEntry]


class PipelineStep(Payload):
    """Make the job of a request and wait for it. `steps` has the ids of the steps before this one, by name."""

    name: str
    kind: str
    request: dict[str, Any]
    steps: dict[str, str]


# ── new pipelines ──


def check_steps(definitions: Sequence[StepDefinition]) -> None:
    """Check that names differ, and that steps wait for other steps and in no circle. Raises InvalidRequest."""
    names = {definition.name: index for index, definition in enumerate(definitions)}
    for index, definition in enumerate(definitions):
        if names[definition.name] != index:
            message = f"Two steps have the name '{definition.name}'."
            raise InvalidRequest(message, param=f"steps[{names[definition.name]}].name", code="duplicate_name")
        for name in definition.after:
            if name not in names:
                message = f"There is no step '{name[:64]}'."
                raise InvalidRequest(message, param=f"steps[{index}].after", code="step_not_found")
    in_order(definitions)


def in_order(definitions: Sequence[StepDefinition]) -> list[StepDefinition]:
    """Return the steps so that each comes after those that it waits for. Raises InvalidRequest for a circle."""
    placed, remaining = dict[str, StepDefinition](), list(definitions)
    while remaining:
        free = [definition for definition in remaining if placed.keys() >= set(definition.after)]
        if not free:
            index = definitions.index(remaining[0])
            message = f"The step '{remaining[0].name}' waits for itself, directly or through others."
            raise InvalidRequest(message, param=f"steps[{index}].after", code="circular_steps")
        placed.update((definition.name, definition) for definition in free)
        remaining = [definition for definition in remaining if definition.name not in placed]
    return list(placed.values())


def submit(
    session: Session,
    definitions: Sequence[StepDefinition],
    *,
    project_id: str,
    actor: str,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    completed: Mapping[str, str] | None = None,
    **columns: Any,
) -> Job:
    """Submit a pipeline with its steps, in the caller's transaction.

    `completed` has the ids of the steps of an earlier pipeline that are not run again, by name.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    ledger.check_room(session, project_id, NAME, MAX_LIVE)
    ids = dict(completed or {})
    common = {"project_id": project_id, "key_id": columns.get("key_id"), "request_id": columns.get("request_id")}
    pipeline_id = new_id(PREFIX)
    for definition in in_order(definitions):
        if definition.name in ids:
            continue
        before = {name: ids[name] for name in _ancestors(definition.name, definitions)}
        payload = PipelineStep(name=definition.name, kind=definition.kind, request=definition.request, steps=before)
        job = Job(
            id=new_id(STEP_PREFIX),
            kind=STEP,
            payload=payload.model_dump(mode="json"),
            parent_id=pipeline_id,
            **PIPELINE_STEP.times(now()),
            **common,
        )
        ids[definition.name] = job.id
        ledger.submit(session, job, actor=actor, after=[ids[name] for name in definition.after])
    entries = [
        StepEntry(**definition.model_dump(exclude={"request"}), id=ids[definition.name]) for definition in definitions
    ]
    job = Job(
        id=pipeline_id,
        project_id=project_id,
        kind=NAME,
        payload=Pipeline(name=name, steps=entries).model_dump(mode="json"),
        **PIPELINE.times(now()),
        **columns,
    )
    if metadata is not None:  # JSON null is not NULL
        job.metadata_ = dict(metadata)
    return ledger.submit(session, job, actor=actor, after=list(ids.values()))


def _ancestors(name: str, definitions: Sequence[StepDefinition]) -> set[str]:
    """Return the names of the steps that a step waits for, directly or through others."""
    after = {definition.name: definition.after for definition in definitions}
    names, remaining = set[str](), [*after[name]]
    while remaining:
        if (before := remaining.pop()) not in names:
            names.add(before)
            remaining += after[before]
    return names


def _resume(session: Session, request: Retry) -> Job:
    """Submit a pipeline with the steps of an ended one, of which those that have completed are not run again."""
    old = request.job
    request.check_unchanged("pipeline", "failed")
    payload = Pipeline.model_validate(old.payload)
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_([step.id for step in payload.steps])))}
    if len(jobs) < len(payload.steps):
        message = f"Steps of pipeline '{old.id}' ended so long ago that they were removed: run it anew."
        raise InvalidRequest(message, code="nothing_to_retry")
    definitions = [
        StepDefinition(name=step.name, kind=step.kind, after=step.after, request=jobs[step.id].payload["request"])
        for step in payload.steps
    ]
    completed = {step.name: step.id for step in payload.steps if jobs[step.id].state == JobState.SUCCEEDED}
    return submit(
        session,
        definitions,
        project_id=old.project_id,
        actor=request.actor,
        name=payload.name,
        metadata=old.metadata_,
        completed=completed,
        **request.columns,
    )


# ── steps ──


def release(session: Session, claim: JobClaim, config: Settings, registry: Registry) -> None:
    """Make the job of a claimed step and let the step wait for it; let a step whose job has completed end.

    Raises: ClaimLost, InvalidRequest, PermissionDenied, ProjectFull, TooManyLiveJobs.
    """
    ledger.assert_claim(session, claim)
    job = claim.job
    if job.id in jobs_by_step(session, [job.id]):
        ledger.begin_running(session, claim, total=1, model=None, queue=Queue.PLAN)
        return
    step = PipelineStep.model_validate(job.payload)
    kind = steps.KINDS[step.kind]
    if job.key_id and (code := find_refusal(session, job.key_id, kind.permission)):
        raise PermissionDenied(REFUSALS[code], code=code)
    stored_bytes.check_not_full(session, job.project_id, limit_of(session, config, job.project_id, "max_bytes"))
    columns = {"parent_id": job.id, "request_id": job.request_id}
    actor = audit.actor_of(job.key_id) if job.key_id else f"pipeline:{job.parent_id}"
    request = kind.request.model_validate(placeholders.fill(step.request, _results(session, step)))
    made = kind.submit(session, Submitter(config, registry, job.project_id, job.key_id, actor, columns), request)
    ledger.wait_for_jobs(session, claim, [made.id])


def jobs_by_step(session: Session, step_ids: Iterable[str]) -> dict[str, Job]:
    """Return the jobs that steps have made, by step."""
    made = select(Job).where(Job.parent_id.in_(step_ids))
    return {str(job.parent_id): job for job in session.scalars(made)}


def _results(session: Session, step: PipelineStep) -> dict[tuple[str, str], str]:
    """Return what the references of a step stand for, by step and field. Raises InvalidRequest for a missing result."""
    made = jobs_by_step(session, step.steps.values())
    results = dict[tuple[str, str], str]()
    for _, name, field in placeholders.find_references(step.request):
        if name not in step.steps or (name, field) in results:
            continue
        before = PipelineStep.model_validate(session.get_one(Job, step.steps[name]).payload)
        kind = steps.KINDS[before.kind]
        if field not in kind.fields:
            continue  # a variable of a prompt
        value = kind.results(session, made[step.steps[name]]).get(field)
        if value is None:
            message = f"The step '{name}' has no '{field}'."
            raise InvalidRequest(message, param="request", code="result_missing")
        results[name, field] = str(value)
    return results


# ── the kinds ──

PIPELINE: Final = Kind(
    NAME,
    "Pipeline",
    PREFIX,
    Pipeline,
    EVENTS,
    resources=("pipelines",),
    permission=PERMISSION,
    window=None,
    retry=_resume,
    counted=False,
    has_lines=False,
)
PIPELINE_STEP: Final = Kind(
    STEP,
    "Step of a pipeline",
    STEP_PREFIX,
    PipelineStep,
    {},
    resources=("pipelines",),
    permission=PERMISSION,
    window=None,
    counted=False,
    has_lines=False,
)
KINDS: Final = (PIPELINE, PIPELINE_STEP)

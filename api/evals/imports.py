"""Evals and runs that were made elsewhere: taken over once each, to be compared and not to be run.

saved eval ─▶ POST /v1/evals/imports ─▶ an eval            found again by the id that it had elsewhere
saved run, a file of its output items ─▶ POST /v1/evals/{eval_id}/imports ─▶ a job that checks and keeps the items
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import AfterValidator, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.routes import eval_values, evals_of, get_eval
from api.evals.runs import show_runs
from api.evals.schemas import CreateEval, CustomConfig, EvalObject, EvalRunObject, show_eval
from api.http.bodies import Body, resource
from api.http.fields import MetadataField
from api.http.idempotency import Idempotent
from api.http.space import check_not_full, count_if_due
from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import NotFound
from jobs.evals import evals, runs
from jobs.evals.run_requests import check_size, find_file
from jobs.evals.runs import Evaluation, Imported
from jobs.evals.tables import Eval, EvalRun
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.usage.project_limits import limit_of

router = resource("Evals", area="evals")

MAX_SOURCE_BYTES = 65_536
_ForeignId = Annotated[str, Field(min_length=1, max_length=255, description="The id that it had elsewhere.")]


def _check_source(source: dict[str, Any]) -> dict[str, Any]:
    if "type" not in source:
        raise ValueError("It has a 'type'.")
    if len(json.dumps(source)) > MAX_SOURCE_BYTES:
        raise ValueError(f"It has at most {MAX_SOURCE_BYTES} bytes: leave out the items.")
    return source


class ImportEval(CreateEval):
    """An eval that was made elsewhere.

    OpenAI shows each criterion with an `id`, its name and a UUID, by which the results of runs are named. The `id` is
    taken, and is the name here of a criterion that shares its name with others.
    """

    imported_from: _ForeignId

    @model_validator(mode="before")
    @classmethod
    def _take_ids(cls, body: Any) -> Any:
        criteria = body.get("testing_criteria") if isinstance(body, dict) else None
        if not isinstance(criteria, list) or not all(isinstance(criterion, dict) for criterion in criteria):
            return body
        names = Counter(str(criterion.get("name")) for criterion in criteria)
        return {**body, "testing_criteria": [_rename_criterion(criterion, names) for criterion in criteria]}


def _rename_criterion(criterion: dict[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    """Return a criterion as one is made here."""
    foreign_id, taken = criterion.get("id"), {name: value for name, value in criterion.items() if name != "id"}
    return {**taken, "name": foreign_id} if foreign_id and names[str(criterion.get("name"))] > 1 else taken


class ImportRun(Body):
    """A run that was made elsewhere. On each line of the file is an output item as the API shows it."""

    imported_from: _ForeignId
    file_id: Annotated[str, Field(min_length=1, max_length=64, description="A file of the purpose `evals`.")]
    name: Annotated[str, Field(min_length=1, max_length=255)] = "Untitled"
    model: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    data_source: Annotated[dict[str, Any], AfterValidator(_check_source)]
    metadata: MetadataField


@router.post("/evals/imports", status_code=201, response_model=EvalObject)
def import_eval(call: Call, once: Idempotent, body: ImportEval) -> Response:
    """Take over an eval that was made elsewhere. The same one again is the eval that is there already."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    if isinstance(body.data_source_config, CustomConfig):
        evals.check_item_schema(body.data_source_config.item_schema)

    def make(session: Session) -> EvalObject:
        check_not_full(session, call)
        return show_eval(_find_or_make_eval(session, call, body))

    count_if_due(call)
    return once.run(fields, make, 201)


@router.post("/evals/{eval_id}/imports", status_code=201, response_model=EvalRunObject)
def import_run(request: Request, call: Call, once: Idempotent, eval_id: str, body: ImportRun) -> Response:
    """Take over the results of a run that was made elsewhere. The same one again is the run that is there already.

    The items are checked after the answer.
    """
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed

    def make(session: Session) -> EvalRunObject:
        check_not_full(session, call)
        own_id = get_eval(session, call, eval_id).id
        same = select(EvalRun).where(EvalRun.eval_id == own_id, EvalRun.imported_from == body.imported_from)
        if session.scalar(same) is None:  # the project is locked before the eval
            limit = limit_of(session, call.config, call.project_id, "eval_runs")
            ledger.check_room(session, call.project_id, runs.NAME, limit)
        row = evals.lock(session, own_id, call.project_id)
        if row is None:
            raise NotFound(f"No eval found with id '{clip(eval_id)}'.", param="eval_id")
        run = session.scalar(same)
        shown = _add_run(session, call, body, row) if run is None else (run, session.get_one(Job, run.id))
        return show_runs(session, request, call, [shown])[0]

    count_if_due(call)
    return once.run(fields, make, 201)


def _find_or_make_eval(session: Session, call: CallContext, body: ImportEval) -> Eval:
    """Return the eval with the foreign id of the body; make it if there is none."""
    values = {**eval_values(call, body), "imported_from": body.imported_from}
    session.execute(insert_into(session, Eval).values(values).on_conflict_do_nothing())
    own = evals_of(call).where(Eval.imported_from == body.imported_from)
    row = session.scalars(own).one()
    if row.id == values["id"]:
        call.record(session, "eval.import", row.id)
    return row


def _add_run(session: Session, call: CallContext, body: ImportRun, row: Eval) -> tuple[EvalRun, Job]:
    """Add a run that reads the file of the body, and does not ask or grade."""
    run = EvalRun(
        id=new_id(runs.PREFIX),
        eval_id=row.id,
        project_id=call.project_id,
        name=body.name,
        data_source=body.data_source,
        imported_from=body.imported_from,
        bytes=0,
        created_at=now(),
    )
    if body.metadata is not None:  # JSON null is not NULL
        run.metadata_ = body.metadata
    file = find_file(session, call.config, call.project_id, body.file_id, "file_id")
    payload = Evaluation(
        eval_id=row.id,
        items=file.path,
        item_schema={},
        criteria=row.testing_criteria,
        imported=Imported(id=body.imported_from, model=body.model),
    )
    check_size(payload)
    job = runs.submit(session, run, payload, actor=call.actor, file=file, request_id=call.request_id)
    call.record(session, "eval.run.import", run.id)
    return run, job

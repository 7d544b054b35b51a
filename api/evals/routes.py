"""Evals: created, listed, renamed and removed with their runs."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.schemas import CreateEval, CustomConfig, EvalDeleted, EvalObject, UpdateEval, show_eval
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import OldestFirst, Page, find, page
from api.http.space import check_not_full, count_if_due
from jobs.clock import now
from jobs.errors import NotFound
from jobs.evals import evals, source_process
from jobs.evals.availability import check_available, deployment_of
from jobs.evals.graders import dump_grader, references_of
from jobs.evals.tables import Eval
from jobs.ids import new_id
from jobs.platform.storage import remove_objects

router = resource("Evals", area="evals")

OrderBy = Annotated[Literal["created_at", "updated_at"], Query(description="The time that orders the list.")]


@router.post("/evals", status_code=201, response_model=EvalObject)
def create_eval(call: Call, once: Idempotent, body: CreateEval) -> Response:
    """Create an eval: the data that its runs read, and the graders of each item."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    _check(call, body)

    def make(session: Session) -> EvalObject:
        check_not_full(session, call)
        row = Eval(**eval_values(call, body))
        session.add(row)
        call.record(session, "eval.create", row.id)
        return show_eval(row)

    count_if_due(call)
    return once.run(fields, make, 201)


@router.get("/evals")
def list_evals(call: Call, listing: OldestFirst, order_by: OrderBy = "created_at") -> Page[EvalObject]:
    """List the project's evals."""
    with call.db.read() as session:
        rows, more = find(session, evals_of(call), Eval, **asdict(listing), by=order_by)
    return page(rows, more, show_eval)


@router.get("/evals/{eval_id}")
def retrieve_eval(call: Call, eval_id: str) -> EvalObject:
    """Return an eval."""
    with call.db.read() as session:
        return show_eval(get_eval(session, call, eval_id))


@router.post("/evals/{eval_id}")
def update_eval(call: Call, eval_id: str, body: UpdateEval) -> EvalObject:
    """Change the name or the metadata of an eval."""
    with call.db.write() as session:
        row = get_eval(session, call, eval_id)
        if body.name is not None:
            row.name = body.name
        if "metadata" in body.model_fields_set:
            row.metadata_ = body.metadata
        row.updated_at = now()
        call.record(session, "eval.update", row.id)
        return show_eval(row)


@router.delete("/evals/{eval_id}")
def delete_eval(call: Call, eval_id: str) -> EvalDeleted:
    """Remove an eval with its runs and their items. Runs that are not complete are cancelled."""
    while True:
        with call.db.write() as session:
            own_id = get_eval(session, call, eval_id).id
            row = evals.lock(session, own_id, call.project_id)
            some = evals.some_runs(session, own_id)
            folders = evals.remove_runs(session, some, actor=call.actor)
            if not some and row is not None:
                session.delete(row)
                call.record(session, "eval.delete", own_id)
        remove_objects(call.storage, folders)
        if not some:
            return EvalDeleted(eval_id=own_id)


def evals_of(call: CallContext) -> Select[Eval]:
    return select(Eval).where(Eval.project_id == call.project_id)


def eval_values(call: CallContext, body: CreateEval) -> dict[str, Any]:
    """Return the values of the row of a new eval."""
    at = now()
    values = {
        "id": new_id(evals.PREFIX),
        "project_id": call.project_id,
        "name": body.name,
        "data_source_config": body.data_source_config.model_dump(mode="json", exclude_none=True),
        "testing_criteria": [dump_grader(grader) for grader in body.testing_criteria],
        "created_at": at,
        "updated_at": at,
    }
    return values if body.metadata is None else {**values, "metadata_": body.metadata}  # JSON null is not NULL


def get_eval(session: Session, call: CallContext, eval_id: str) -> Eval:
    """Return an eval of the project by its id, or by the id that it had elsewhere. Raises NotFound."""
    own = evals_of(call)
    row = session.scalar(own.where(Eval.id == eval_id)) or session.scalar(own.where(Eval.imported_from == eval_id))
    if row is None:
        raise NotFound(f"No eval found with id '{clip(eval_id)}'.", param="eval_id")
    return row


def _check(call: CallContext, body: CreateEval) -> None:
    """Check what needs more than the body. Raises InvalidRequest, ProjectBusy.

    The models of judges are checked when a run is created: an eval lasts longer than the models of a deployment, and
    may be made before them.
    """
    if isinstance(body.data_source_config, CustomConfig):
        evals.check_item_schema(body.data_source_config.item_schema)
    with call.db.read() as session:
        deployment = deployment_of(session, call.config, call.services.registry())
    config = body.data_source_config.model_dump(mode="json")
    graders = {f"testing_criteria[{index}]": grader for index, grader in enumerate(body.testing_criteria)}
    for param, grader in graders.items():
        check_available(grader, deployment, param, waits=True)
        evals.check_references(config, references_of(grader), param)
    if sources := source_process.sources_of(graders):
        with call.services.computations.slot(call.project_id):
            source_process.check(sources)

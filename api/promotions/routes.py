"""Promotions: created with the runs of their gates, listed and cancelled."""

from fastapi.responses import Response
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.evals.runs import build_file_run
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, find, page
from api.http.space import check_not_full, count_if_due
from api.promotions.schemas import CreateGate, CreatePromotion, PromotionObject, show_promotion, status_of
from jobs.errors import InvalidRequest, MissingPermission, NotFound
from jobs.ledger.tables import Job
from jobs.promotions import promotions
from jobs.promotions.gates import GateRequest
from jobs.promotions.promotions import PromotionRequest

router = resource("Promotions", area="promotions")


@router.post("/promotions", response_model=PromotionObject)
def create_promotion(call: Call, once: Idempotent, body: CreatePromotion) -> Response:
    """Evaluate the candidate, and move the target to it if every gate passes; at once where that is forced."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    request = build_request(call, body)

    def make(session: Session) -> PromotionObject:
        check_not_full(session, call)
        job = promotions.submit(
            session,
            call.config,
            call.services.registry(),
            request,
            project_id=call.project_id,
            key_id=call.caller.key_id,
            actor=call.actor,
            idempotency_key=once.key,
            request_id=call.request_id,
        )
        return show_promotion(job)

    count_if_due(call)
    return once.run(fields, make)


@router.get("/promotions")
def list_promotions(
    call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[PromotionObject]:
    """List the project's promotions, with the reports of their gates."""
    with call.db.read() as session:
        rows, more = find(session, _promotions_of(call), Job, after=after, limit=limit, order=order)
    return page(rows, more, show_promotion)


@router.get("/promotions/{promotion_id}")
def retrieve_promotion(call: Call, promotion_id: str) -> PromotionObject:
    """Return one promotion, with the reports of its gates."""
    with call.db.read() as session:
        return show_promotion(_get(session, call, promotion_id))


@router.post("/promotions/{promotion_id}/cancel")
def cancel_promotion(call: Call, promotion_id: str) -> PromotionObject:
    """Stop a promotion and its runs, within seconds: nothing moves. Cancelling twice is not an error."""
    with call.db.write() as session:
        return show_promotion(call.cancel(session, _get(session, call, promotion_id), "promotion.cancel", _refusal))


def build_request(call: CallContext, body: CreatePromotion) -> PromotionRequest:
    """Return the checked request of a body. Raises: Expired, InvalidRequest, MissingPermission, NotFound."""
    for permission in (body.target.permission, *(["api.evals.write"] if body.gates else [])):
        if permission not in call.caller.permissions:
            raise MissingPermission(permission)
    if body.force and body.gates:
        message = "A forced promotion has no gates: nothing would wait for them."
        raise InvalidRequest(message, param="gates", code="mutually_exclusive_parameters")
    if body.force and body.reason is None:
        message = "Missing required parameter: 'reason'. A forced promotion says why."
        raise InvalidRequest(message, param="reason", code="missing_required_parameter")
    if not body.force and not body.gates:
        message = "Missing required parameter: 'gates'. A promotion without gates is forced, for a reason."
        raise InvalidRequest(message, param="gates", code="missing_required_parameter")
    return PromotionRequest(
        target=body.target,
        gates=[_build_gate(call, index, gate) for index, gate in enumerate(body.gates)],
        force=body.force,
        reason=body.reason,
        metadata=body.metadata,
    )


def _build_gate(call: CallContext, index: int, gate: CreateGate) -> GateRequest:
    try:
        run = build_file_run(call, gate, gate.eval_id)
    except (InvalidRequest, NotFound) as error:
        param = f"gates[{index}].{error.param}" if error.param else f"gates[{index}]"
        raise type(error)(error.message, param=param, code=error.code) from None
    return GateRequest(run=run, criterion=gate.criterion, rule=gate.rule)


def _refusal(job: Job) -> str:
    return f"Cannot cancel a promotion with status '{status_of(job)}'."


def _promotions_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind == promotions.NAME)


def _get(session: Session, call: CallContext, promotion_id: str) -> Job:
    job = session.scalar(_promotions_of(call).where(Job.id == promotion_id))
    if job is None:
        raise NotFound(f"No promotion found with id '{clip(promotion_id)}'.", param="promotion_id")
    return job

"""Promotions: jobs that move a production name to a candidate, where runs of evals say that it is good enough.

    request ─▶ one transaction: promotion ──after──▶ runs of the incumbent and the candidate, one eval for each gate
        └─ once the runs have completed ─▶ planned ─▶ judged ─▶ one transaction: the move, the report and the end

    promoted        every gate passed, or the promotion is forced, and the target is what it was at the beginning
    refused         a gate failed, the target has moved meanwhile, or it may not have the candidate any more
    inconclusive    all else: too few items, a run that failed, was deleted or cancelled, a day without an end

The last transaction is the only one that moves anything. So a process may be killed at any time.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, PermissionDenied
from jobs.evals import run_requests
from jobs.evals.run_requests import EvalRunRequest
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.ledger import audit, ledger
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.promotions.gates import Gate, GateReport, GateRequest, NotWorse
from jobs.promotions.targets import Mover, MoveRecord, Target
from jobs.security.ended_keys import REFUSALS, find_refusal
from jobs.settings import Settings

NAME: Final = "promotion"
PREFIX: Final = "promo_"
PERMISSION: Final = "api.promotions.write"
REFUSED: Final = "promotion.refused"
MAX_GATES: Final = 10
#: Promotions of a project that have not ended.
MAX_LIVE: Final = 100
_MAX_NAME: Final = 255

Outcome = Literal["promoted", "refused", "inconclusive"]


class PromotionRequest(BaseModel):
    """A checked request for a promotion: it has gates, or else a reason for which it is forced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    gates: list[GateRequest] = []
    force: bool = False
    reason: str | None = None
    metadata: dict[str, str] | None = None


class Promotion(Payload):
    """Move the target from the incumbent to its candidate if the gates pass.

    `state` is what the target replaces, as it was when the promotion began. The end adds the outcome, and the reports
    of the gates.
    """

    target: Target
    incumbent: str
    state: str
    gates: list[Gate]
    force: bool = False
    reason: str | None = None
    outcome: Outcome | None = None


# ── new promotions ──


def submit(
    session: Session,
    config: Settings,
    registry: Registry,
    request: PromotionRequest,
    *,
    project_id: str,
    key_id: str | None,
    actor: str,
    request_id: str | None = None,
    **columns: Any,
) -> Job:
    """Submit a promotion with the runs of its gates, in the caller's transaction.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    ledger.check_room(session, project_id, NAME, MAX_LIVE)
    target, mover = request.target, Mover(project_id, key_id, registry)
    incumbent = target.current(session, project_id)
    if incumbent == target.candidate:
        message = f"The candidate is the incumbent of the {target.type} '{target.id}' already."
        raise InvalidRequest(message, param="target", code="already_promoted")
    target.check(session, mover)
    job_id, run_ids = new_id(PREFIX), dict[str, str]()

    def run(asked: EvalRunRequest, value: str) -> str:
        """Return the id of the run of a request in which the target has a value; gates that ask the same share it."""
        named = asked.model_copy(update={"name": asked.name or f"{target.id}: {value}"[:_MAX_NAME]})
        redirected = target.redirect(session, project_id, named, value)
        key = redirected.model_dump_json()
        if key not in run_ids:
            common: dict[str, Any] = {
                "project_id": project_id,
                "key_id": key_id,
                "actor": actor,
                "request_id": request_id,
            }
            made = run_requests.submit_with_eval(session, config, registry, redirected, parent_id=job_id, **common)
            run_ids[key] = made.id
        return run_ids[key]

    gates = []
    for index, gate in enumerate(request.gates):
        try:
            candidate = run(gate.run, target.candidate)
            _check_criterion(session.get_one(Job, candidate), gate.criterion)
            against = run(gate.run, incumbent) if isinstance(gate.rule, NotWorse) else None
        except InvalidRequest as error:
            param = f"gates[{index}].{error.param}" if error.param else f"gates[{index}]"
            raise InvalidRequest(error.message, param=param, code=error.code) from None
        gates.append(
            Gate(
                eval_id=gate.run.eval_id,
                criterion=gate.criterion,
                rule=gate.rule,
                candidate_run_id=candidate,
                incumbent_run_id=against,
            )
        )
    payload = Promotion(
        target=target,
        incumbent=incumbent,
        state=target.state(session, project_id),
        gates=gates,
        force=request.force,
        reason=request.reason,
    )
    job = Job(
        id=job_id,
        project_id=project_id,
        kind=NAME,
        payload=payload.model_dump(mode="json"),
        key_id=key_id,
        request_id=request_id,
        **PROMOTION.times(now()),
        **columns,
    )
    if request.metadata is not None:  # JSON null is not NULL
        job.metadata_ = request.metadata
    details = {"target": target.model_dump(), "incumbent": incumbent, "reason": request.reason}
    audit.record(
        session,
        actor=actor,
        action="promotion.force" if request.force else "promotion.create",
        target=job_id,
        project_id=project_id,
        request_id=request_id,
        details=details,
    )
    return ledger.submit(session, job, actor=actor, after=list(run_ids.values()))


def _check_criterion(run: Job, criterion: str | None) -> None:
    names = [row["name"] for row in run.payload["criteria"]]
    if criterion is not None and criterion not in names:
        message = f"The eval has no such criterion; it has {', '.join(names)}."
        raise InvalidRequest(message[:1000], param="criterion", code="criterion_not_found")


# ── the end ──


def conclude(session: Session, claim: JobClaim, registry: Registry, reports: Sequence[GateReport]) -> None:
    """End a claimed promotion by the reports of its gates, and move its target where they allow that.

    Raises: ClaimLost.
    """
    ledger.assert_claim(session, claim)
    payload, error = Promotion.model_validate(claim.job.payload), None
    outcome = _outcome_of(reports)
    if outcome == "promoted":
        try:
            _move(session, claim.job, registry, payload, reports)
        except (Conflict, InvalidRequest, PermissionDenied) as refusal:
            outcome, error = "refused", _error(refusal.code or "promotion_refused", refusal.message)
    else:
        reasons = [reason for report in reports if report.outcome != "passed" for reason in report.reasons]
        error = _error("gate_failed" if outcome == "refused" else "gate_inconclusive", "; ".join(reasons))
    gates = [gate.model_copy(update={"report": report}) for gate, report in zip(payload.gates, reports, strict=True)]
    ended = payload.model_copy(update={"gates": gates, "outcome": outcome})
    passed = sum(report.outcome == "passed" for report in reports)
    ledger.close(
        session,
        claim,
        {"payload": ended.model_dump(mode="json"), "completed": passed, "failed": len(reports) - passed},
        [],
        event=REFUSED if outcome == "refused" else None,
        errors=[error] if error else (),
    )


def _outcome_of(reports: Sequence[GateReport]) -> Outcome:
    outcomes = {report.outcome for report in reports}
    return "refused" if "failed" in outcomes else "inconclusive" if "inconclusive" in outcomes else "promoted"


def _move(session: Session, job: Job, registry: Registry, payload: Promotion, reports: Sequence[GateReport]) -> None:
    """Move the target if it still has its incumbent, may have the candidate, and the key may move it.

    Raises: Conflict, InvalidRequest, PermissionDenied.
    """
    target, mover = payload.target, Mover(job.project_id, job.key_id, registry)
    if job.key_id and (code := find_refusal(session, job.key_id, target.permission)):
        raise PermissionDenied(REFUSALS[code], code=code)
    target.current(session, job.project_id, lock=True)
    state = target.state(session, job.project_id)
    if state != payload.state:
        message = f"The {target.type} '{target.id}' was moved from '{payload.state}' to '{state}' meanwhile."
        raise Conflict(message, code="target_moved")
    target.check(session, mover)
    record = MoveRecord(
        actor=audit.actor_of(job.key_id) if job.key_id else f"promotion:{job.id}",
        reason=payload.reason,
        promotion_id=job.id,
        request_id=job.request_id,
        reports=[report.model_dump(mode="json") for report in reports],
    )
    target.move(session, mover, record)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "line": None, "param": None}


def outcome_of(job: Job) -> Outcome | None:
    """Return how a promotion ended; None while it goes on, and where it was cancelled."""
    if job.state not in TERMINAL or job.state == JobState.CANCELLED:
        return None
    outcome: Outcome | None = job.payload.get("outcome")
    return outcome or "inconclusive"


PROMOTION: Final = Kind(
    NAME,
    "Promotion",
    PREFIX,
    Promotion,
    {
        "succeeded": "promotion.promoted",
        "failed": "promotion.inconclusive",
        "expired": "promotion.inconclusive",
        "cancelled": "promotion.cancelled",
    },
    other_events={REFUSED: PREFIX},
    resources=("promotions", "aliases", "prompts", "vector_stores"),
    permission=PERMISSION,
    counted=False,
    has_lines=False,
)

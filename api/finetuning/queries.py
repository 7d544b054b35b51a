"""The rows of fine-tuning jobs, and the request that a body asks for."""

import secrets
from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.finetuning.schemas import CreateFineTuningJob, FineTuningFields, JobDetails
from jobs.errors import InvalidRequest, NotFound
from jobs.finetuning import names
from jobs.finetuning.jobs import NAME
from jobs.finetuning.payload import EarlyStopping, FineTuning, Training, Validation, Wandb
from jobs.finetuning.tables import FinetunePlan
from jobs.finetuning.tuning_requests import TuningRequest
from jobs.ledger import dependencies, pauses
from jobs.ledger.tables import Job, Shard
from jobs.registry import models
from jobs.security.tables import Project


def jobs_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind == NAME)


def get_job(session: Session, call: CallContext, job_id: str) -> Job:
    job = session.scalar(jobs_of(call).where(Job.id == job_id))
    if job is None:
        raise NotFound(f"No fine-tuning job found with id '{clip(job_id)}'.", param="fine_tuning_job_id")
    return job


def standings(session: Session, call: CallContext, jobs: Sequence[Job]) -> dict[str, JobDetails]:
    """Return what the objects of jobs say beside their rows, by job."""
    ids = [job.id for job in jobs]
    plans = session.scalars(select(FinetunePlan).where(FinetunePlan.job_id.in_(ids)))
    plan_of = {plan.job_id: plan for plan in plans}
    begun = set(session.scalars(select(Shard.job_id).where(Shard.job_id.in_(ids), Shard.epoch > 0)))
    paused, results = pauses.paused_jobs(session, ids), models.results(session, ids)
    after = dependencies.predecessors(session, jobs)
    organization = names.slug(session.get_one(Project, call.project_id).name)
    return {
        job_id: JobDetails(
            organization, plan_of.get(job_id), results.get(job_id), job_id in begun, job_id in paused, after[job_id]
        )
        for job_id in ids
    }


# ── what is asked for ──


def build_request(call: CallContext, body: CreateFineTuningJob) -> TuningRequest:
    """Return a request for a job, checked as far as that is possible without its base and files.

    Raises: InvalidRequest.
    """
    if body.integrations and call.config.wandb_mode == "off":
        message = "This deployment has no Weights & Biases: its operator sets NIGHTMILL_WANDB_MODE."
        raise InvalidRequest(message, param="integrations", code="unsupported_value")
    payload = FineTuning(
        model=body.model,
        base="",
        result="",
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        suffix=body.suffix,
        method=body.method_type,
        hyperparameters=body.effective_hyperparameters(),
        peft=body.peft,
        training=parse_training(body),
        validation=parse_validation(body),
        early_stopping=EarlyStopping.model_validate(body.fields().get("early_stopping") or {}),
        validation_file=body.validation_file,
        wandb=Wandb.model_validate(body.integrations[0].wandb.model_dump()) if body.integrations else None,
        general_file=body.general_file,
    )
    return TuningRequest(payload=payload, training_file=body.training_file, metadata=body.metadata)


def parse_training(body: FineTuningFields) -> Training:
    """Return how to train. Raises InvalidRequest for fields that exclude each other."""
    training = Training.model_validate(body.fields().get("training") or {})
    if training.learning_rate is not None and body.effective_hyperparameters().learning_rate_multiplier != "auto":
        message = "'training.learning_rate' and 'learning_rate_multiplier' exclude each other."
        raise InvalidRequest(message, param="training.learning_rate", code="invalid_value")
    if training.load_best and not (body.validation or body.validation_file):
        message = "'training.load_best' needs a 'validation_file' or a 'validation'."
        raise InvalidRequest(message, param="training.load_best", code="invalid_value")
    return training


def parse_validation(body: FineTuningFields) -> Validation | None:
    """Return how to validate. Raises InvalidRequest where `validation` and `validation_file` do not fit together."""
    if body.validation is None:
        return None
    if (body.validation.type == "file") != (body.validation_file is not None):
        message = "'validation.type' is 'file' exactly when there is a 'validation_file'."
        raise InvalidRequest(message, param="validation.type", code="invalid_value")
    return Validation.model_validate(body.validation.model_dump())

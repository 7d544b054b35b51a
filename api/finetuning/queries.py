"""The rows of fine-tuning jobs, and what a request for one asks for, checked."""

import secrets
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.files.queries import visible
from api.finetuning.schemas import CreateFineTuningJob, FineTuningFields, JobDetails
from jobs.errors import InvalidRequest, NotFound
from jobs.files.tables import File
from jobs.finetuning import names
from jobs.finetuning.jobs import NAME
from jobs.finetuning.payload import EarlyStopping, FineTuning, Peft, Training, Validation, Wandb
from jobs.finetuning.tables import FinetunePlan
from jobs.fleet import access, workers
from jobs.fleet.models_file import EngineKind, Registry
from jobs.ids import new_id
from jobs.ledger import dependencies, pauses
from jobs.ledger.tables import Job, Shard
from jobs.queues import Queue
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.requests.endpoints import FINE_TUNING
from jobs.security.tables import Project

_VLLM_RANK: Final = 16  # the highest rank of an adapter where a model's `max_lora_rank` is not set

PURPOSE = "fine-tune"


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


def new_payload(session: Session, call: CallContext, body: CreateFineTuningJob, job_id: str) -> FineTuning:
    """Return the payload of a new job. Raises InvalidRequest."""
    fields = body.fields()
    if body.integrations and call.config.wandb_mode == "off":
        message = "This deployment has no Weights & Biases: its operator sets NIGHTMILL_WANDB_MODE."
        raise InvalidRequest(message, param="integrations", code="unsupported_value")
    base, parent = resolve_base(session, call, body)
    check_peft(session, body.peft)
    project = session.get_one(Project, call.project_id).name
    return FineTuning(
        model=body.model,
        base=base,
        result=names.model_name(base, project, body.suffix, job_id),
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        parent=parent,
        suffix=body.suffix,
        method=body.method_type,
        hyperparameters=body.effective_hyperparameters(),
        peft=body.peft,
        training=parse_training(call.services.registry(), base, body),
        validation=parse_validation(body),
        early_stopping=EarlyStopping.model_validate(fields.get("early_stopping") or {}),
        validation_file=body.validation_file,
        wandb=Wandb.model_validate(body.integrations[0].wandb.model_dump()) if body.integrations else None,
        general_file=body.general_file,
    )


def parse_training(registry: Registry, base: str, body: FineTuningFields) -> Training:
    """Return how to train. Raises InvalidRequest for an adapter that the engine of the base serves otherwise."""
    training = Training.model_validate(body.fields().get("training") or {})
    if training.learning_rate is not None and body.effective_hyperparameters().learning_rate_multiplier != "auto":
        message = "'training.learning_rate' and 'learning_rate_multiplier' exclude each other."
        raise InvalidRequest(message, param="training.learning_rate", code="invalid_value")
    if training.load_best and not (body.validation or body.validation_file):
        message = "'training.load_best' needs a 'validation_file' or a 'validation'."
        raise InvalidRequest(message, param="training.load_best", code="invalid_value")
    if body.peft != "full" and training.chat_template is not None:
        message = (
            "An adapter is served with the chat template of its base. Give a template with the 'peft' 'full', "
            f"or to the base: its folder in the models file, with the template, beside '{base}'."
        )
        raise InvalidRequest(message, param="training.chat_template", code="unsupported_value")
    args = registry.trainable[base].engine_args
    if body.peft != "full" and training.use_dora and args.get("enable_lora"):
        message = f"Invalid 'training.use_dora': the engine of '{base}' serves no adapters with DoRA."
        raise InvalidRequest(message, param="training.use_dora", code="unsupported_value")
    limit = args.get("max_lora_rank", _VLLM_RANK) if args.get("enable_lora") else training.rank
    if body.peft != "full" and training.rank > limit:
        message = f"Invalid 'training.rank': the engine of '{base}' serves adapters of rank {limit} at most."
        raise InvalidRequest(message, param="training.rank", code="integer_above_max_value")
    return training


def check_peft(session: Session, peft: Peft) -> None:
    """Raise InvalidRequest for `qlora` where the workers that train say that none of them computes with 4-bit weights.

    While one of them has not said anything yet, the job may wait for it.
    """
    trainers = [worker for worker in workers.present(session) if Queue.FINETUNE in worker.queues]
    reports = [worker.training or {"qlora": True} for worker in trainers]
    if peft == "qlora" and reports and not any(training["qlora"] for training in reports):
        message = f"'qlora' cannot be trained by the workers of this deployment: {reports[0]['fault']}"
        raise InvalidRequest(message, param="peft", code="unsupported_on_this_worker")


def parse_validation(body: FineTuningFields) -> Validation | None:
    """Return how to validate. Raises InvalidRequest where `validation` and `validation_file` do not fit together."""
    if body.validation is None:
        return None
    if (body.validation.type == "file") != (body.validation_file is not None):
        message = "'validation.type' is 'file' exactly when there is a 'validation_file'."
        raise InvalidRequest(message, param="validation.type", code="invalid_value")
    return Validation.model_validate(body.validation.model_dump())


def resolve_base(session: Session, call: CallContext, body: FineTuningFields) -> tuple[str, str | None]:
    """Return the base that a request names, and the tuned model to go on from, if any. Raises InvalidRequest."""
    registry, parent = call.services.registry(), None
    name = access.model_of_name(session, registry, body.model, call.project_id)
    if models.is_tuned(name):
        tuned = models.find(session, name, call.project_id)
        if tuned is None or tuned.state != models.READY:
            raise _not_available(registry, f"The model '{clip(name)}' does not exist or is not ready.")
        _check_chain(tuned, body.peft)
        name, parent = tuned.base, tuned.name
    if (base := registry.base(name)) is not None:
        try:
            access.check(session, registry, call.work(parent or base.name, FINE_TUNING))
        except access.AccessDenied as denial:
            raise _not_available(registry, f"The model '{clip(body.model)}' does not exist.") from denial
        return base.name, parent
    if (other := registry.resolve(name)) is None:
        raise _not_available(registry, f"The model '{clip(name)}' does not exist.")
    reason = "runs behind a URL" if other.engine is EngineKind.HTTP else f"is of the engine '{other.engine}'"
    raise _not_available(registry, f"The model '{clip(name)}' {reason} and cannot be trained here.")


def _check_chain(parent: TunedModel, peft: Peft) -> None:
    """Raise InvalidRequest where a training cannot go on from a tuned model: from weights to an adapter, or back."""
    if (parent.method == models.FULL) == (peft == "full"):
        return
    if peft == "full":
        message = (
            f"The model '{parent.name}' is an adapter, without weights of its own: 'lora' goes on from it. Merged "
            "(`nightmill finetune export --merge`) and added to the models file, it can be trained in full."
        )
    else:
        message = f"The model '{parent.name}' has weights of its own: only the 'peft' 'full' goes on from it."
    raise InvalidRequest(message, param="peft", code="invalid_value")


def _not_available(registry: Registry, message: str) -> InvalidRequest:
    bases = ", ".join(f"`{name}`" for name in registry.trainable) or "none"
    return InvalidRequest(f"{message} Models that can be trained: {bases}.", param="model", code="model_not_available")


def training_files(
    session: Session, call: CallContext, body: FineTuningFields, *, lock: bool = True
) -> dict[str, File]:
    """Return the files that a request names, by field; with `lock` their bytes stay. Raises InvalidRequest."""
    given = {field: getattr(body, field) for field in ("training_file", "validation_file", "general_file")}
    return {field: _file(session, call, field, file_id, lock=lock) for field, file_id in given.items() if file_id}


def _file(session: Session, call: CallContext, field: str, file_id: str, *, lock: bool) -> File:
    rows = visible(call).where(File.id == file_id)
    file = session.scalar(rows.with_for_update(read=True) if lock else rows)
    if file is None:
        raise InvalidRequest(f"Invalid {field}: no file '{clip(file_id)}' exists.", param=field, code="file_not_found")
    if file.purpose != PURPOSE:
        message = f"Invalid {field}: '{file.id}' has the purpose '{file.purpose}', and not '{PURPOSE}'."
        raise InvalidRequest(message, param=field, code="invalid_file_purpose")
    return file


def new_job_id() -> str:
    return new_id(names.JOB_PREFIX)

"""Requests for fine-tuning jobs: their files, the base that they name, and the job that one becomes.

request ─▶ files of the project ─▶ base, or the tuned model to go on from ─▶ checked against the base ─▶ job
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.datasets import dataset_versions, references
from jobs.errors import InvalidRequest
from jobs.files import lookup
from jobs.files.tables import File
from jobs.finetuning import jobs, names
from jobs.finetuning.payload import MAX_RANK, FineTuning, Peft, Training
from jobs.fleet import access, workers
from jobs.fleet.access import Work
from jobs.fleet.models_file import EngineKind, ModelConfig, Registry
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.registry import models
from jobs.registry.tables import TunedModel
from jobs.security.tables import Project
from jobs.settings import Settings
from jobs.usage.project_limits import limit_of

PURPOSE: Final = "fine-tune"
_VLLM_RANK: Final = 16  # the highest rank of an adapter where a model's `max_lora_rank` is not set


class TuningRequest(BaseModel):
    """A checked request for a job. `payload` lacks the base and the result, which are found when the job is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    payload: FineTuning
    training_file: str
    metadata: dict[str, str] | None = None

    def files(self) -> dict[str, str]:
        """Return the ids of the files that the request names, by field."""
        payload = self.payload
        files = {
            "training_file": self.training_file,
            "validation_file": payload.validation_file,
            "general_file": payload.general_file,
        }
        return {field: file_id for field, file_id in files.items() if file_id}


def submit(
    session: Session,
    config: Settings,
    registry: Registry,
    request: TuningRequest,
    work: Work,
    *,
    actor: str,
    after: Sequence[str] = (),
    **columns: Any,
) -> Job:
    """Submit the job of a request, in the caller's transaction. `work` is training for the project and the key.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    project_id, payload = work.project_id, request.payload
    ledger.check_room(session, project_id, jobs.NAME, limit_of(session, config, project_id, "finetune_jobs"))
    files = find_files(session, project_id, request.files())
    base, parent = resolve_base(session, registry, work, payload.peft)
    check_peft(session, payload.peft)
    check_training(registry, base, payload.peft, payload.training)
    splits = references.references_to(session, [file.id for file in files.values()])
    resolved = {
        "datasets": {field: splits[file.id] for field, file in files.items() if file.id in splits},
        **{field: file.id for field, file in files.items() if field != "training_file"},
    }
    job_id, project = new_id(names.JOB_PREFIX), session.get_one(Project, project_id).name
    result = names.model_name(base, project, payload.suffix, job_id)
    return jobs.submit(
        session,
        payload.model_copy(update={"base": base, "parent": parent, "result": result, **resolved}),
        job_id=job_id,
        project_id=project_id,
        training_file=files["training_file"],
        actor=actor,
        metadata=request.metadata,
        after=after,
        **columns,
    )


def find_files(session: Session, project_id: str, ids: Mapping[str, str], *, lock: bool = True) -> dict[str, File]:
    """Return the files with these ids, or references to datasets, by field; with `lock` their bytes stay.

    Raises: InvalidRequest.
    """
    pinned, _ = references.pin(session, project_id, ids)
    named = {**ids, **pinned}
    return {field: _find_file(session, project_id, field, file_id, lock=lock) for field, file_id in named.items()}


def _find_file(session: Session, project_id: str, field: str, file_id: str, *, lock: bool) -> File:
    file = lookup.find(session, project_id, file_id, lock=lock)
    if file is None:
        raise InvalidRequest(f"Invalid {field}: no file '{quote(file_id)}' exists.", param=field, code="file_not_found")
    if file.purpose not in (PURPOSE, dataset_versions.PURPOSE):
        message = f"Invalid {field}: '{file.id}' has the purpose '{file.purpose}', and not '{PURPOSE}'."
        raise InvalidRequest(message, param=field, code="invalid_file_purpose")
    return file


def resolve_base(session: Session, registry: Registry, work: Work, peft: Peft) -> tuple[str, str | None]:
    """Return the base that a request names, and the tuned model to go on from, if any. Raises InvalidRequest."""
    parent = None
    name = access.model_of_name(session, registry, work.model, work.project_id)
    if models.is_tuned(name):
        tuned = models.find(session, name, work.project_id)
        if tuned is None or tuned.state != models.READY:
            raise _not_available(registry, f"The model '{quote(name)}' does not exist or is not ready.")
        _check_chain(tuned, peft)
        name, parent = tuned.base, tuned.name
    if (base := registry.base(name)) is not None:
        try:
            access.check(session, registry, replace(work, model=parent or base.name))
        except access.AccessDenied as denial:
            raise _not_available(registry, f"The model '{quote(work.model)}' does not exist.") from denial
        return base.name, parent
    if (other := registry.resolve(name)) is None:
        raise _not_available(registry, f"The model '{quote(name)}' does not exist.")
    reason = "runs behind a URL" if other.engine is EngineKind.HTTP else f"is of the engine '{other.engine}'"
    raise _not_available(registry, f"The model '{quote(name)}' {reason} and cannot be trained here.")


def check_peft(session: Session, peft: Peft) -> None:
    """Raise InvalidRequest for `qlora` where the workers that train say that none of them computes with 4-bit weights.

    While one of them has not said anything yet, the job may wait for it.
    """
    trainers = [worker for worker in workers.present(session) if Queue.FINETUNE in worker.queues]
    reports = [worker.training or {"qlora": True} for worker in trainers]
    if peft == "qlora" and reports and not any(training["qlora"] for training in reports):
        message = f"'qlora' cannot be trained by the workers of this deployment: {reports[0]['fault']}"
        raise InvalidRequest(message, param="peft", code="unsupported_on_this_worker")


def check_training(registry: Registry, base: str, peft: Peft, training: Training) -> None:
    """Raise InvalidRequest for an adapter that the engine of the base serves otherwise."""
    if peft == "full":
        return
    if training.chat_template is not None:
        message = (
            "An adapter is served with the chat template of its base. Give a template with the 'peft' 'full', "
            f"or to the base: its folder in the models file, with the template, beside '{base}'."
        )
        raise InvalidRequest(message, param="training.chat_template", code="unsupported_value")
    args = registry.trainable[base].engine_args
    if training.use_dora and args.get("enable_lora"):
        message = f"Invalid 'training.use_dora': the engine of '{base}' serves no adapters with DoRA."
        raise InvalidRequest(message, param="training.use_dora", code="unsupported_value")
    limit = max_rank(registry.trainable[base])
    if training.rank > limit:
        message = f"Invalid 'training.rank': the engine of '{base}' serves adapters of rank {limit} at most."
        raise InvalidRequest(message, param="training.rank", code="integer_above_max_value")


def max_rank(base: ModelConfig) -> int:
    """Return the highest rank of an adapter that the engine of a base serves."""
    args = base.engine_args
    limit: int = args.get("max_lora_rank", _VLLM_RANK) if args.get("enable_lora") else MAX_RANK
    return limit


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

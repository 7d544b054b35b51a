"""Jobs of kind `model_import`: check the files of a client, copy them, and register the model.

    plan     the base's folder ─▶ every check of `imported_folder` ─▶ what is registered into the payload, or rejected
    finish   files ─▶ imports/<job>/…, the manifest last ─▶ one transaction: the model, its version, the end of the job

One process of a host checks at a time. A copy that was cut off is made again, with the same bytes.
"""

from functools import partial
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches.lines import Bad
from jobs.files.tables import File
from jobs.finetuning import model_imports
from jobs.finetuning.model_imports import DescribedModel, ModelImport
from jobs.finetuning.tuning_requests import max_rank
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.platform.locks import hold_exclusively
from jobs.queues import Queue
from jobs.registry.manifests import MANIFEST
from workers.engines.model_folders import ModelUnavailable, local_folder
from workers.finetuning import imported_folder
from workers.finetuning.imported_folder import BadFolder, ClientFolder
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

_BASE_AWAY: Final = 30.0  # seconds until a base that is not on this machine is looked for again


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Check the files of a claimed job, and let the job run or reject it. Raises Abandoned, ClaimLost."""
    asked = ModelImport.model_validate(claim.job.payload)
    try:
        with hold_exclusively(context.config.data_dir / "run" / "model_import") as is_alone:
            if not is_alone:
                raise Abandoned(context.timings.examination_retry)
            described = _check(context, asked, _folder_of(context, asked, handle))
    except BadFolder as error:
        errors = [Bad("invalid_model", str(error), None, "files").as_dict()]
        context.db.retrying(partial(ledger.reject, claim=claim, errors=errors), context.stop)
        return
    payload = asked.model_copy(update={"described": described}).model_dump(mode="json", exclude_defaults=True)
    begin = partial(
        ledger.begin_running, claim=claim, total=len(asked.files), model=None, queue=Queue.PLAN, payload=payload
    )
    context.db.retrying(begin, context.stop)


def finish(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Copy the files of a claimed job, and register its model; close a job that was cancelled.

    Raises: Abandoned, ClaimLost, NotFound, StorageFull, StorageUnavailable.
    """
    job = claim.job
    if job.state != JobState.FINISHING:
        context.db.retrying(partial(ledger.close, claim=claim, values={"completed": 0}, files=[]))
        return
    if context.low_on_disk():
        raise Abandoned(5.0, "disk")
    asked = ModelImport.model_validate(job.payload)
    folder, location = _folder_of(context, asked, handle), model_imports.location(job.id)
    for name in sorted(asked.files, key=lambda name: (name == MANIFEST, name)):
        with context.storage.writer(f"{location}/{name}") as target:
            for data in folder.chunks(name):
                target.write(data)

    def close_with_model(session: Session) -> None:
        ledger.close(session, claim, {"completed": job.total}, [])
        model_imports.register(session, job)

    context.db.retrying(close_with_model)


def _check(context: Context, asked: ModelImport, folder: ClientFolder) -> DescribedModel:
    """Return what is registered of a folder. Raises BadFolder; Abandoned, while its base is away."""
    try:
        base = context.models.now().trainable.get(asked.base)
        if base is None:
            raise BadFolder(f"The model '{asked.base}' is no longer one whose adapters are served here.")
        return imported_folder.check(folder, local_folder(base, context.config), max_rank(base))
    except (ModelsFileError, ModelUnavailable):
        raise Abandoned(_BASE_AWAY, "model") from None


def _folder_of(context: Context, asked: ModelImport, handle: ClaimHandle) -> ClientFolder:
    """Return the files of the client, by their names in the folder."""

    def check_stop() -> None:
        if handle.ended:
            raise Abandoned

    with context.db.read() as session:
        rows = session.execute(select(File.id, File.path).where(File.id.in_(asked.files.values())))
        paths = {file_id: path for file_id, path in rows}  # noqa: C416 (rows are not pairs)
    return ClientFolder(context.storage, {name: paths[id_] for name, id_ in asked.files.items()}, check_stop)

"""Checkpoints in the deployment's storage: complete there before their row names them, and fetched by their hash.

    folder of the trainer ─▶ training/<job>/<step>-<epoch>/…, the manifest last ─▶ one fenced transaction: the row

The claim's epoch is in the location, so that a worker that lost its claim overwrites nothing that a row names. The last
`KEEP_OPTIMIZER` checkpoints keep what a resumed run needs; the others keep the model alone.
"""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.ids import new_id
from jobs.platform.storage import CHUNK, Storage, remove_objects
from jobs.registry.manifests import MANIFEST, RESUME, Manifest, decode_manifest
from workers.engines.training import checkpoint_folder
from workers.engines.training.checkpoint_folder import DamagedCheckpoint

PREFIX: Final = "ftckpt_"
FOLDER: Final = "training"
KEEP_OPTIMIZER: Final = 3


def location(job_id: str, step: int, epoch: int) -> str:
    """Return the folder in storage for a checkpoint that is made under a claim of this epoch."""
    return f"{FOLDER}/{job_id}/{step:08d}-{epoch}"


def of_job(session: Session, job_id: str) -> Sequence[FinetuneCheckpoint]:
    """Return the checkpoints of a job, the last one first."""
    rows = select(FinetuneCheckpoint).where(FinetuneCheckpoint.job_id == job_id)
    return session.scalars(rows.order_by(FinetuneCheckpoint.step.desc())).all()


def upload(storage: Storage, folder: Path, target: str) -> dict[str, Any]:
    """Store a complete folder, its manifest last; return the columns of the checkpoint's row that describe it."""
    manifest = decode_manifest((folder / MANIFEST).read_bytes())
    for name in manifest.files:
        with (folder / name).open("rb") as source, storage.writer(f"{target}/{name}") as handle:
            shutil.copyfileobj(source, handle, CHUNK)
    data = (folder / MANIFEST).read_bytes()
    storage.put(f"{target}/{MANIFEST}", data)
    return {
        "location": target,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "model_bytes": sum(file.bytes for file in manifest.model_files.values()),
    }


def download(storage: Storage, source: str, sha256: str, folder: Path, *, resume: bool = False) -> Manifest:
    """Fetch a stored checkpoint into a new folder. Raises NotFound, Damaged when a byte is not as it was stored.

    `resume`: with the files that only a resumed run reads.
    """
    folder.mkdir(parents=True)
    with storage.reader(f"{source}/{MANIFEST}") as handle:
        data = handle.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedCheckpoint(f"{MANIFEST} does not have the bytes that were recorded.")
    manifest = decode_manifest(data)
    for name in manifest.files if resume else manifest.model_files:
        path = folder / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.reader(f"{source}/{name}") as handle, path.open("wb") as target:
            shutil.copyfileobj(handle, target, CHUNK)
    (folder / MANIFEST).write_bytes(data)
    return checkpoint_folder.verify(folder, resume=resume)


def add(session: Session, job_id: str, step: int, **columns: Any) -> list[str]:
    """Add the row of a stored checkpoint; return the locations of those that keep no optimiser from now on.

    A row of the same step is replaced: the run was resumed from an earlier checkpoint.
    """
    row = session.scalar(
        select(FinetuneCheckpoint).where(FinetuneCheckpoint.job_id == job_id, FinetuneCheckpoint.step == step)
    )
    if row is None:
        row = FinetuneCheckpoint(id=new_id(PREFIX), job_id=job_id, step=step, created_at=now())
        session.add(row)
    row.keeps_optimizer = True
    for name, value in columns.items():
        setattr(row, name, value)
    session.flush()
    keeping = [row for row in of_job(session, job_id) if row.keeps_optimizer]
    return _forget_optimizer(session, keeping[KEEP_OPTIMIZER:])


def keep_models(session: Session, job_id: str) -> list[str]:
    """Note that no checkpoint of a job keeps its optimiser; return the locations of all."""
    rows = of_job(session, job_id)
    _forget_optimizer(session, [row for row in rows if row.keeps_optimizer])
    return [row.location for row in rows]


def remove_optimizer(storage: Storage, locations: Iterable[str]) -> None:
    """Remove what only a resumed run reads from checkpoints whose rows say that it is not there."""
    remove_objects(storage, (f"{location}/{name}" for location in locations for name in sorted(RESUME)))


def remove_partial_uploads(storage: Storage, job_id: str, named: Iterable[str]) -> None:
    """Remove what uploads that were cut off have left, given the locations that rows name."""
    known = {location.rpartition("/")[2] for location in named}
    for name in storage.folders(f"{FOLDER}/{job_id}"):
        if name not in known:
            remove_objects(storage, [f"{FOLDER}/{job_id}/{name}"])


def _forget_optimizer(session: Session, rows: Sequence[FinetuneCheckpoint]) -> list[str]:
    ids = [row.id for row in rows]
    left = func.coalesce(FinetuneCheckpoint.model_bytes, FinetuneCheckpoint.bytes)
    forget = update(FinetuneCheckpoint).where(FinetuneCheckpoint.id.in_(ids)).values(keeps_optimizer=False, bytes=left)
    session.execute(forget)
    return [row.location for row in rows]

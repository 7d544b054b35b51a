"""Tuned models as a training job leaves them: files in storage, a row with their hashes."""

import hashlib
import json
from collections.abc import Mapping

from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.platform.storage import Storage
from jobs.registry import models
from jobs.registry.tables import CheckpointPermission, TunedModel
from jobs.security import keys
from workers.runtime.adapter_files import name_of


def tuned_model(
    db: Database,
    storage: Storage,
    name: str,
    *,
    base: str = "fake-model",
    project: str = "default",
    files: Mapping[str, bytes] | None = None,
    job_id: str = "",
    step: int | None = None,
    method: str = "lora",
) -> str:
    """Store the result of a training under `name`; return the name under which engines know its weights."""
    job_id = job_id or new_id("ftjob-")
    kind, config = ("", {"model_type": "llama"}) if method == "full" else ("adapter_", {"peft_type": "LORA"})
    weights = "model.safetensors"
    content = {
        f"{kind}config.json": json.dumps(config | {"base_model_name_or_path": base}).encode(),
        f"{kind}{weights}": f"the weights of {name}".encode(),
        **(files or {}),
    }
    hashes = {file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for file, data in content.items()}
    manifest = json.dumps({"files": hashes, "run": {}}).encode()
    location, sha256 = f"training/{job_id}/4", hashlib.sha256(manifest).hexdigest()
    for file, data in {**content, "manifest.json": manifest}.items():
        storage.put(f"{location}/{file}", data)
    with db.write() as session:
        models.register(
            session,
            name=name,
            project_id=keys.ensure_project(session, project).id,
            base=base,
            job_id=job_id,
            method=method,
            location=location,
            sha256=sha256,
            manifest={},
            checkpoint_step=step,
        )
    return name_of(sha256, whole=method == "full")


def location_of(db: Database, name: str) -> str:
    """Return where the files of a tuned model lie in the storage."""
    with db.read() as session:
        return session.query(TunedModel).filter_by(name=name).one().location


def delete(db: Database, name: str) -> None:
    """Delete a tuned model, as its owner does."""
    with db.write() as session:
        owner = session.query(TunedModel).filter_by(name=name).one().project_id
        assert models.delete(session, name, owner) is not None


def permit(db: Database, name: str, project: str) -> None:
    """Let a project ask for a checkpoint of another."""
    with db.write() as session:
        owner = keys.ensure_project(session, project)
        row = CheckpointPermission(
            id=new_id("cp_"), model=name, project_id=owner.id, created_by="key_1", created_at=1.0
        )
        session.add(row)


def forbid(db: Database, name: str) -> None:
    """Withdraw every permission for a checkpoint."""
    with db.write() as session:
        session.query(CheckpointPermission).filter_by(model=name).delete()

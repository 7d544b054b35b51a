"""Check what is stored: the data folder, free space, the database and its schema, files."""

import os
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cli.doctor.findings import Finding, Patient, broken, fine, warning
from cli.up.effective import without_secrets
from cli.up.procfile import CODE
from jobs.bootstrap import OlderSchema, is_too_old
from jobs.db.engine import Database
from jobs.errors import NightmillError
from jobs.fleet import quarantine, workers
from jobs.platform.storage import open_storage, space_at
from jobs.queues import Queue
from jobs.registry import models
from jobs.retrieval.source_locations import meets

_RELEASE = "python -m jobs.bootstrap"
_GB = 1 << 30
T = TypeVar("T")


def data_folder(patient: Patient) -> Iterator[Finding]:
    path = patient.folder.path
    if not path.exists():
        yield fine("data folder", f"{path} is made at the first start")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield broken("data folder", f"{path} can't be written", f"chown it to this user: {path}")
    else:
        yield fine("data folder", str(path))


def source_folders(patient: Patient) -> Iterator[Finding]:
    """Find folders of NIGHTMILL_SOURCE_FOLDERS that contain a folder of the deployment, or lie in one."""
    for name in patient.config.source_folders:
        if meets(Path(name).resolve(), patient.config.own_folders):
            message = "it contains or lies in a folder with keys and stored files; sources that meet that are refused"
            yield warning(f"source folder {name}", message, "name folders beside it in NIGHTMILL_SOURCE_FOLDERS")
        else:
            yield fine(f"source folder {name}", "it lies apart from this deployment's own")


def disk(patient: Patient) -> Iterator[Finding]:
    path = next(folder for folder in (patient.folder.path, *patient.folder.path.parents) if folder.exists())
    space = space_at(path)
    message = f"{space.bytes / _GB:.1f} GB free at {path}"
    if space.inodes == 0:
        yield broken("disk", f"{message}, and no free inodes: uploads are refused and jobs wait", "remove files")
    elif space.bytes < patient.config.min_free_bytes:
        yield broken(
            "disk",
            f"{message}; below {patient.config.min_free_bytes / _GB:.1f} GB uploads are refused and jobs wait",
            "make room",
        )
    else:
        yield fine("disk", message)


def database(patient: Patient) -> Iterator[Finding]:
    url = make_url(patient.config.database)
    shown = without_secrets(url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield fine("database", f"{shown} is made at the first start")
        return
    db = Database(patient.config.database, patience=3)
    try:
        with db.engine.connect() as connection:
            heads = set(MigrationContext.configure(connection).get_current_heads())
            pooler = list(_pooler(connection))
    except SQLAlchemyError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        yield broken("database", f"{shown}: {reason}", "start it, or correct NIGHTMILL_DATABASE_URL")
        return
    finally:
        db.close()
    yield _schema(shown, heads)
    yield from pooler


def _pooler(connection: Connection) -> Iterator[Finding]:
    """Check that the role limits the time of statements where a pooler hands its connections from client to client.

    What a process sets for its session is then the setting of one of the pooler's connections, and not of all.
    """
    if getattr(connection.connection.driver_connection, "pooled", False):
        if connection.scalar(text("SELECT reset_val FROM pg_settings WHERE name = 'statement_timeout'")) == "0":
            message = "a pooler such as PgBouncer stands between, and statements have no time limit there"
            yield warning("database pooler", message, "ALTER ROLE CURRENT_USER SET statement_timeout = '30s'")
        else:
            yield fine("database pooler", "a pooler such as PgBouncer stands between")


def _schema(shown: str, heads: set[str]) -> Finding:
    newest = set(ScriptDirectory(str(CODE / "migrations")).get_heads())
    if heads == newest:
        return fine("database", f"{shown}, schema {', '.join(sorted(heads))}")
    fix = OlderSchema.text if any(map(is_too_old, heads)) else _RELEASE
    return broken("database", f"{shown} has schema {sorted(heads)}, this version needs {sorted(newest)}", fix)


def quarantines(patient: Patient) -> Iterator[Finding]:
    """List the models whose engines died too often and are not started again."""
    rows = read_database(patient, quarantine.all_quarantines) or ()
    for row in rows:
        fix = f"correct what its log says, then `nightmill resume model {row.model}`"
        yield (warning if row.trial else broken)(f"engine of {row.model}", "; ".join(quarantine.describe(row)), fix)


def tuned_models(patient: Patient) -> Iterator[Finding]:
    """Check that a process serves the tuned models that have weights of their own, if there are any."""
    whole = read_database(patient, models.count_full_models)
    if whole and not read_database(patient, partial(workers.alive, queue=Queue.TUNED)):
        message = f"{whole} with weights of their own, and no process serves such models"
        yield warning("tuned models", message, "`nightmill up --with tuned`, or `python -m workers tuned`")


def read_database(patient: Patient, read: Callable[[Session], T]) -> T | None:
    """Return what `read` finds in the database; None where the check of the database reports why not."""
    url = make_url(patient.config.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None
    db = Database(patient.config.database, patience=3)
    try:
        with db.read() as session:
            return read(session)
    except (SQLAlchemyError, NightmillError):
        return None
    finally:
        db.close()


def files(patient: Patient) -> Iterator[Finding]:
    """Write, read and delete a small object."""
    url = patient.config.storage
    if not patient.config.storage_url and not patient.folder.path.exists():
        yield fine("files", f"{url} is made at the first start")
        return
    name = f"doctor/{uuid.uuid4().hex}"
    try:
        storage = open_storage(url)
        storage.put(name, b"?")
        with storage.reader(name) as handle:
            whole = handle.read(2) == b"?"
        storage.delete(name)
    except (NightmillError, OSError, ValueError) as error:
        yield broken("files", f"{url}: {error}", "correct NIGHTMILL_STORAGE_URL and its credentials")
        return
    yield fine("files", url) if whole else warning("files", f"{url} gives back other bytes", "look at the store")

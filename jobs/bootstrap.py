"""The release step: `python -m jobs.bootstrap` brings the database to the newest schema and makes the first keys.

It is run before anything else starts and may run again at any time. The operator's own key is kept beside the
data it opens, readable by its owner alone, like a notebook server's token; the database holds only its hash.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy.exc import DatabaseError

from jobs import logs
from jobs.db.engine import Database
from jobs.db.hosts import claim_host
from jobs.errors import NightmillError
from jobs.platform.secret_files import write_secret
from jobs.security.audit_key import create_audit_key
from jobs.security.keys import allow_managing, check_key, create_key, ensure_project
from jobs.security.projects import DEFAULT_PROJECT
from jobs.security.sign_in import OPERATOR_KEY
from jobs.security.tables import Project
from jobs.settings import Settings, settings

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class NewerSchema(NightmillError):
    """The database has a schema that this version does not know."""

    text = "A newer version has migrated this database: start that one, or restore a backup from before."


class OlderSchema(NightmillError):
    """The database has a schema from before the first migration of this version."""

    text = (
        "The schema of this database is too old for this version: upgrade it with commit 1e3ca3bd first, see "
        "docs/operate/upgrade.md, Old databases. Nothing has been changed."
    )


class DatabaseDamaged(NightmillError):
    """The file of the database is not as SQLite has written it."""

    text = (
        "The database file is damaged, and SQLite cannot read it. Keep it aside and restore a backup: see "
        "docs/operate/backup.md, Restore. `nightmill doctor --deep` says what SQLite finds."
    )


#: SQLite's result codes for a file whose content is wrong, and for one that is no database.
_DAMAGED = frozenset({11, 26})


def main() -> None:
    """Run the release step; end with a sentence where the database refuses it."""
    config = settings()
    logs.configure(config.log_level)
    try:
        release(config)
    except NightmillError as error:
        raise SystemExit(f"nightmill: {error}") from None


def release(config: Settings) -> None:
    """Bring the database to the newest schema, and make the keys that are missing.

    Raises: DatabaseDamaged, DatabaseBusy, NewerSchema, OlderSchema, WrongHost.
    """
    config.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        migrate(config.database)
        db = Database(config.database, patience=10)
        claim_host(db)
        operator_key(db, config)
        create_audit_key(db, config)
        db.close()
    except DatabaseError as error:
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            raise DatabaseDamaged from error
        raise


def is_too_old(revision: str) -> bool:
    """Return whether a revision lies before the first one of this version."""
    return revision < str(ScriptDirectory(str(MIGRATIONS)).get_base())


def migrate(url: str) -> None:
    """Apply every migration that is missing. Raises NewerSchema, OlderSchema."""
    alembic = Config()
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))  # it interpolates
    alembic.attributes["url"] = url
    try:
        command.upgrade(alembic, "head")
    except CommandError as error:
        if isinstance(cause := error.__cause__, ResolutionError):  # the database names a revision that is not here
            raise (OlderSchema if is_too_old(str(cause.argument)) else NewerSchema) from error
        raise


def operator_key(db: Database, config: Settings) -> str:
    """Return the operator's key; make one on the first start, or when it opens nothing any more. It manages keys."""
    path = config.data_dir / OPERATOR_KEY
    key = path.read_text().strip() if path.exists() else ""
    with db.write() as session:
        project: Project = ensure_project(session, DEFAULT_PROJECT)
        if key and (row := check_key(session, key)):
            allow_managing(session, row)  # a key from before keys that manage keys
            return key
        key = create_key(session, project.name, manages=True)
        write_secret(path, key)  # before the commit: a key on disk that opens nothing is replaced at the next start
    return key


if __name__ == "__main__":
    main()

"""The key that signs the audit log. It is in no table, so that whoever may write to the database cannot sign.

    NIGHTMILL_AUDIT_KEY, or its file     the same key on several hosts
    audit.key                            otherwise: a file of the data folder, made by the first release step
    audit.key.new                        that file until the log is signed with it

Only who makes the key signs the log as it is: the release step on a host without one where no signature is, and
`nightmill audit sign`. A dispatcher continues a signature, so that removing it gains nothing.
"""

import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.db.engine import Database
from jobs.ledger import audit
from jobs.platform.secret_files import write_secret
from jobs.settings import Settings

AUDIT_KEY: Final = "audit.key"

log = logging.getLogger(__name__)


def audit_key(config: Settings) -> str:
    """Return the key; empty on a host that has none."""
    return config.audit_key or _read(config.data_dir / AUDIT_KEY)


def create_audit_key(db: Database, config: Settings) -> None:
    """Make a key where there is none, and sign the audit log with it, unless it has the signature of another host."""
    if audit_key(config):
        return
    path = config.data_dir / AUDIT_KEY
    new = path.with_name(f"{AUDIT_KEY}.new")
    with db.write() as session:
        head = audit.lock_head(session)
        if audit_key(config):  # of a release step beside this one
            return
        key = _load_or_make(new)
        if head.signed is None:
            audit.sign(session, key)
        elif not audit.has_signature(session, head, key):
            new.unlink()
            log.warning("audit_key_missing", extra={"path": str(path)})
    with suppress(FileNotFoundError):  # it was another host's, or a release step beside this one was faster
        new.replace(path)


def sign(db: Database, config: Settings) -> int:
    """Sign the audit log as it is, with the key of this host, which is made if there is none. Return the last row."""
    with db.write() as session:
        seal = audit.sign(session, audit_key(config) or _load_or_make(config.data_dir / AUDIT_KEY))
        audit.record(session, actor="operator", action="audit.sign", target=str(seal))
        return seal


def _load_or_make(path: Path) -> str:
    """Return the key of a file; make the file where there is none."""
    if not _read(path):
        write_secret(path, secrets.token_urlsafe(32))
    return _read(path)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""

"""Projects and their API keys.

    nm_<8 characters: id>_<43 characters: 32 random bytes>_<8 hex: CRC-32 of what stands before>

The id finds the row, and the SHA-256 of the whole key is compared in constant time. 256 random bits need no slow hash.
A wrong checksum is refused without a query. The key itself is shown once and never stored.
"""

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.security.tables import ApiKey, Project

#: `project_id` of an operator's key: no row of any project has it.
NO_PROJECT: Final = ""
#: Live keys of a project that its own keys may create.
LIVE_KEYS: Final = 100
_PREFIX = "nm"
_ID_ALPHABET = string.ascii_lowercase + string.digits
#: Compared if the id is unknown, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


def create_key(session: Session, project_name: str, *, actor: str = "operator", limit: int | None = None) -> str:
    """Create a key of a project, and the project if it is new. Return the key, which is stored nowhere.

    Raises: InvalidRequest for a project that has `limit` live keys.
    """
    project = ensure_project(session, project_name)
    live = select(func.count()).where(ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None))
    if limit is not None and (session.scalar(live) or 0) >= limit:
        message = f"The project has {limit} live API keys, which is the most. Revoke one first."
        raise InvalidRequest(message, code="too_many_api_keys")
    return _create(session, project.id, actor=actor)


def create_operator_key(session: Session, *, actor: str = "operator") -> str:
    """Create a key that steers the deployment and opens no project. Return the key, which is stored nowhere."""
    return _create(session, NO_PROJECT, actor=actor, operator=True)


def _create(session: Session, project_id: str, *, actor: str, operator: bool = False) -> str:
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    body = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    key = f"{body}_{zlib.crc32(body.encode()):08x}"
    session.add(ApiKey(id=key_id, project_id=project_id, digest=_digest(key), operator=operator, created_at=now()))
    action = "operator_key.create" if operator else "key.create"
    audit.record(session, actor=actor, action=action, target=key_id, project_id=project_id or None)
    return key


def ensure_project(session: Session, name: str) -> Project:
    """Return the project of this name; create it if it is new. Safe against concurrent creation."""
    new = {"id": new_id("proj_"), "name": name, "weight": 1.0, "allow_external": False, "created_at": now()}
    session.execute(insert_into(session, Project).values(new).on_conflict_do_nothing())
    return session.scalars(select(Project).where(Project.name == name)).one()


def find_project(session: Session, name: str) -> Project | None:
    return session.scalar(select(Project).where(Project.name == name))


def project_names(session: Session) -> dict[str, str]:
    """Return the name of every project by its id."""
    return {project.id: project.name for project in session.scalars(select(Project))}


def allow_external(session: Session, project_name: str, *, allowed: bool, actor: str = "operator") -> None:
    """Set whether a project's prompts may go to endpoints outside this deployment."""
    project = ensure_project(session, project_name)
    project.allow_external = allowed
    action = "project.allow_external" if allowed else "project.forbid_external"
    audit.record(session, actor=actor, action=action, target=project.id, project_id=project.id)


def list_keys(session: Session) -> Sequence[tuple[ApiKey, str | None]]:
    """Return every key with the name of its project; None for an operator's key."""
    of_project = Project.id == ApiKey.project_id
    rows = session.execute(select(ApiKey, Project.name).outerjoin(Project, of_project).order_by(ApiKey.created_at))
    return [(key, name) for key, name in rows]


def id_of(key: str) -> str:
    """Return the id of a well-formed key."""
    return key.split("_")[1]


def redacted(key_id: str) -> str:
    """Return the beginning of a key, which is all that is known of it."""
    return f"{_PREFIX}_{key_id}_…"


def revoke_key(session: Session, key_id: str, *, actor: str = "operator", project_id: str | None = None) -> bool:
    """Revoke a key by id; return False if there is no such live key, with `project_id` of that project."""
    live = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=now())
    if project_id is not None:
        live = live.where(ApiKey.project_id == project_id)
    revoked: bool = session.execute(live).rowcount == 1  # type: ignore[attr-defined]
    if revoked:
        audit.record(session, actor=actor, action="key.revoke", target=key_id, project_id=project_id)
    return revoked


def well_formed(key: str) -> bool:
    """Return whether the prefix and the checksum are right."""
    body, _, checksum = key.rpartition("_")
    return key.startswith(f"{_PREFIX}_") and checksum == f"{zlib.crc32(body.encode()):08x}"


def check_key(session: Session, key: str) -> ApiKey | None:
    """Return the live key's row, or None. An unknown id takes as long as a wrong secret."""
    parts = key.split("_")
    row = session.get(ApiKey, parts[1]) if len(parts) >= 4 else None
    right = hmac.compare_digest(_digest(key), row.digest if row else _NOBODY)
    return row if row is not None and right and row.revoked_at is None else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

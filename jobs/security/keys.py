"""Projects and their API keys.

    nm_<8 characters: id>_<43 characters: 32 random bytes>_<8 hex: CRC-32 of what stands before>

The id finds the row, and the SHA-256 of the whole key is compared in constant time. 256 random bits need no slow hash.
A wrong checksum is refused without a query. The key itself is shown once and never stored.

    command on the host ──▶ keys that manage keys, and others ──▶ others: created by the first, with `created_by`

A key that somebody had for a minute opens nothing once it and the keys that it created are revoked.
"""

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.security.tables import ApiKey, Project

#: `project_id` of an admin key, and of what holds for the whole organization: no row of any project has it.
NO_PROJECT: Final = ""
#: Live keys of a project that its own keys may create.
LIVE_KEYS: Final = 100
_PREFIX = "nm"
_ID_ALPHABET = string.ascii_lowercase + string.digits
#: Compared if the id is unknown, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


def create_key(
    session: Session,
    project_name: str,
    *,
    manages: bool = False,
    created_by: str | None = None,
    limit: int | None = None,
) -> str:
    """Create a key of a project, and the project if it is new. Return the key, which is stored nowhere.

    `created_by` is the id of the key that asks for it; None for the operator.
    Raises: InvalidRequest for a project that has `limit` live keys.
    """
    project = ensure_project(session, project_name)
    live = select(func.count()).where(ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None))
    if limit is not None and (session.scalar(live) or 0) >= limit:
        message = f"The project has {limit} live API keys, which is the most. Revoke one first."
        raise InvalidRequest(message, code="too_many_api_keys")
    return _create(session, project.id, manages=manages, created_by=created_by)


def create_admin_key(session: Session) -> str:
    """Create a key that administers the organization and opens no project. Return the key, which is stored nowhere."""
    return _create(session, NO_PROJECT, admin=True)


def _create(
    session: Session, project_id: str, *, admin: bool = False, manages: bool = False, created_by: str | None = None
) -> str:
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    body = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    key = f"{body}_{zlib.crc32(body.encode()):08x}"
    rights = {"is_admin": admin, "manages_keys": manages, "created_by": created_by}
    session.add(ApiKey(id=key_id, project_id=project_id, digest=_digest(key), created_at=now(), **rights))
    audit.record(
        session,
        actor=audit.actor_of(created_by) if created_by else "operator",
        action="admin_key.create" if admin else "key.create",
        target=key_id,
        project_id=project_id or None,
        details={"manages_keys": True} if manages else None,
    )
    return key


def allow_managing(session: Session, key: ApiKey) -> None:
    """Let a key create and revoke the keys of its project."""
    if not key.manages_keys:
        key.manages_keys = True
        audit.record(
            session, actor="operator", action="key.allow_managing", target=key.id, project_id=key.project_id or None
        )


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
    _record_permission(session, project, "external", allowed, actor)


def allow_media_urls(session: Session, project_name: str, *, allowed: bool, actor: str = "operator") -> None:
    """Set whether workers fetch the pictures and files that a project's requests name by URL."""
    project = ensure_project(session, project_name)
    project.allow_media_urls = allowed
    _record_permission(session, project, "media_urls", allowed, actor)


def _record_permission(session: Session, project: Project, name: str, allowed: bool, actor: str) -> None:
    action = f"project.{'allow' if allowed else 'forbid'}_{name}"
    audit.record(session, actor=actor, action=action, target=project.id, project_id=project.id)


def list_keys(session: Session) -> Sequence[tuple[ApiKey, str | None]]:
    """Return every key with the name of its project; None for an admin key."""
    of_project = Project.id == ApiKey.project_id
    rows = session.execute(select(ApiKey, Project.name).outerjoin(Project, of_project).order_by(ApiKey.created_at))
    return [(key, name) for key, name in rows]


def id_of(key: str) -> str:
    """Return the id of a well-formed key."""
    return key.split("_")[1]


def redact(key_id: str) -> str:
    """Return the beginning of a key, which is all that is known of it."""
    return f"{_PREFIX}_{key_id}_…"


def revoke_key(
    session: Session, key_id: str, *, actor: str = "operator", project_id: str | None = None, cascade: bool = False
) -> list[str] | None:
    """Revoke a key, with `cascade` also the keys that it created, itself or through others.

    Return the ids of the keys that it created and that were live; None if there was nothing to revoke, in the project
    of `project_id` if one is given.
    """
    project = session.scalar(select(ApiKey.project_id).where(ApiKey.id == key_id))
    if project is None or project_id not in (None, project):
        return None
    lock_keys(session, project)
    live = session.scalars(_select_tree(key_id).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at)).all()
    ending = [key for key in live if cascade or key.id == key_id]
    for key in ending:
        key.revoked_at = now()
        details = None if key.id == key_id else {"cascade_of": key_id}
        audit.record(
            session, actor=actor, action="key.revoke", target=key.id, project_id=project or None, details=details
        )
    return [key.id for key in live if key.id != key_id] if ending else None


def _select_tree(key_id: str) -> Select[ApiKey]:
    """Return the statement of a key and of those that it created, itself or through others."""
    tree = select(ApiKey.id).where(ApiKey.id == key_id).cte(recursive=True)
    tree = tree.union(select(ApiKey.id).join(tree, ApiKey.created_by == tree.c.id))
    return select(ApiKey).join(tree, ApiKey.id == tree.c.id)


def lock_keys(session: Session, project_id: str) -> None:
    """Keep others from creating and revoking keys of the project until the transaction ends.

    A key that is created beside the revocation of its creator would outlive it otherwise.
    """
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def manages_keys(session: Session, key_id: str) -> bool:
    """Return whether a key is live and manages the keys of its project."""
    row = session.get(ApiKey, key_id)
    return row is not None and row.manages_keys and row.revoked_at is None


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

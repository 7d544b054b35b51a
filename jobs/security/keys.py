"""Projects and their API keys.

    nm_<8 characters: id>_<43 characters: 32 random bytes>_<8 hex: CRC-32 of what stands before>

The id finds the row, and the SHA-256 of the whole key is compared in constant time. 256 random bits need no slow hash.
A wrong checksum is refused without a query. The key itself is shown once and never stored.

    command on the host ──▶ keys that manage keys, and others ──▶ others: created by the first, with `created_by`

A key that somebody had for a minute opens nothing once it and the keys that it created are revoked.

A key opens what its scopes and its owner's permissions both allow, until it is revoked, has expired, its owner is
deleted or its project is archived: `find_key` says so at each door, of a request, a stream and a claim alike.
"""

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack

from sqlalchemy import Case, ColumnElement, Select, and_, bindparam, case, exists, func, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.errors import InvalidRequest, Unauthenticated
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.security import permissions, roles
from jobs.security.tables import NO_PROJECT, Account, ApiKey, Project, ServiceAccount

#: Live keys of the service accounts of a project, up to which its keys may create others.
LIVE_KEYS: Final = 100
_PREFIX = "nm"
_ID_ALPHABET = string.ascii_lowercase + string.digits
#: Compared if the id is unknown, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()
#: Why a key opens nothing any more, by code: the error of its jobs.
ENDS: Final = {
    "project_archived": "The project of the API key is archived.",
    "key_revoked": "The API key was revoked.",
    "key_expired": "The API key has expired.",
}


class KeyOptions(TypedDict, total=False):
    """The choices of who creates a key.

    Without an `owner_id` a key of a project gets a service account of its own. `created_by` is the id of the key that
    asks for the new one; None for the command. `limit` is how many live keys the project may have. `actor` is who
    asks where no key and no command does.
    """

    name: str | None
    scopes: Sequence[str]
    expires_at: float | None
    owner_id: str | None
    created_by: str | None
    manages: bool
    limit: int
    actor: str


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key, why it opens nothing (a code of `ENDS`; None: it is live), and what its owner may do.

    The key permits what its owner may do, narrowed to its scopes.
    """

    row: ApiKey
    end: str | None
    owned: frozenset[str]

    @property
    def permissions(self) -> frozenset[str]:
        return self.owned & permissions.expand(self.row.scopes) if self.row.scopes else self.owned

    @property
    def is_live(self) -> bool:
        return self.end is None


def create_key(session: Session, project_name: str, **options: Unpack[KeyOptions]) -> str:
    """Create a key of a project, and the project if it is new. Return the key, which is stored nowhere.

    Raises: InvalidRequest, for a project with too many live keys, and for an unknown scope.
    """
    return add_key(session, ensure_project(session, project_name).id, **options)


def create_admin_key(session: Session, **options: Unpack[KeyOptions]) -> str:
    """Create a key that administers the organization and opens no project. Return the key, which is stored nowhere.

    Raises: InvalidRequest, for an unknown scope.
    """
    return add_key(session, NO_PROJECT, **options)


def add_key(session: Session, project_id: str, **options: Unpack[KeyOptions]) -> str:
    """Create a key of a project, an admin key of `NO_PROJECT`. Return the key, which is stored nowhere.

    Raises: InvalidRequest, for a project with too many live keys, and for an unknown scope.
    """
    scopes, created_by, limit = options.get("scopes", ()), options.get("created_by"), options.get("limit")
    permissions.check_scopes(scopes, "scopes")
    if limit is not None and live_keys(session, project_id) >= limit:
        message = f"The project has {limit} live API keys, which is the most. Revoke one first."
        raise InvalidRequest(message, code="too_many_api_keys")
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    body = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    key = f"{body}_{zlib.crc32(body.encode()):08x}"
    name, owner_id = options.get("name") or f"key {key_id}", options.get("owner_id")
    if owner_id is None and project_id:
        owner_id = f"svc_acct_{key_id}"
        session.add(ServiceAccount(id=owner_id, project_id=project_id, name=name, role="member", created_at=now()))
    row = ApiKey(
        id=key_id,
        project_id=project_id,
        digest=_digest(key),
        hint=key[-4:],
        name=name,
        owner_id=owner_id,
        scopes=list(scopes) or None,
        is_admin=not project_id,
        manages_keys=options.get("manages", False),
        created_by=created_by,
        created_at=now(),
        expires_at=options.get("expires_at"),
    )
    session.add(row)
    audit.record(
        session,
        actor=options.get("actor") or (audit.actor_of(created_by) if created_by else "operator"),
        action="key.create" if project_id else "admin_key.create",
        target=key_id,
        project_id=project_id or None,
        details=_rights(row),
    )
    return key


def live_keys(session: Session, project_id: str) -> int:
    """Return the number of the keys of a project that are neither revoked nor expired; those of people do not count."""
    of_person = exists().where(Account.id == ApiKey.owner_id)
    live = select(func.count()).where(ApiKey.project_id == project_id, is_in_force(), ~of_person)
    return session.scalar(live) or 0


def is_in_force() -> ColumnElement[bool]:
    """Return the condition that a key is neither revoked nor expired."""
    return and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()))


def _rights(key: ApiKey) -> dict[str, Any] | None:
    """Return what the audit log says of a key: what it has beyond, or less than, a usual one."""
    named = {"manages_keys": key.manages_keys or None, "scopes": key.scopes, "expires_at": key.expires_at}
    return {name: value for name, value in named.items() if value is not None} or None


def change_key(
    session: Session, key: ApiKey, *, actor: str, scopes: Sequence[str] | None, expires_at: float | None
) -> None:
    """Set the scopes or the end of a key; leave what is None. Raises: InvalidRequest, for an unknown scope."""
    if scopes is not None:
        permissions.check_scopes(scopes, "scopes")
        key.scopes = list(scopes) or None
    if expires_at is not None:
        key.expires_at = expires_at
    project_id = key.project_id or None
    audit.record(session, actor=actor, action="key.update", target=key.id, project_id=project_id, details=_rights(key))


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
    return session.scalars(_select_live(name)).one()


def find_project(session: Session, name: str) -> Project | None:
    """Return the project of this name that is not archived."""
    return session.scalar(_select_live(name))


def _select_live(name: str) -> Select[Project]:
    return select(Project).where(Project.name == name, Project.archived_at.is_(None))


def project_names(session: Session) -> dict[str, str]:
    """Return the name of every project by its id."""
    return {project.id: project.name for project in session.scalars(select(Project))}


def list_keys(session: Session) -> Sequence[tuple[ApiKey, str | None]]:
    """Return every key with the name of its project; None for an admin key."""
    of_project = Project.id == ApiKey.project_id
    rows = session.execute(select(ApiKey, Project.name).outerjoin(Project, of_project).order_by(ApiKey.created_at))
    return [(key, name) for key, name in rows]


def id_of(key: str) -> str:
    """Return the id of a well-formed key."""
    return key.split("_")[1]


def redact(key: ApiKey) -> str:
    """Return what a key begins and ends with; of a key that an earlier version has made only the beginning."""
    return f"{_PREFIX}_{key.id}...{key.hint or ''}"


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
    _lock_tree(session, key_id)
    in_tree = ApiKey.id.in_(tree_of(key_id))
    live = session.scalars(select(ApiKey).where(in_tree, ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at)).all()
    ending = [key for key in live if cascade or key.id == key_id]
    for key in ending:
        key.revoked_at = now()
        details = None if key.id == key_id else {"cascade_of": key_id}
        audit.record(
            session, actor=actor, action="key.revoke", target=key.id, project_id=project or None, details=details
        )
    return [key.id for key in live if key.id != key_id] if ending else None


def tree_of(key_id: str) -> Select[str]:
    """Return the statement of the ids of a key and of those that it created, itself or through others."""
    tree = select(ApiKey.id).where(ApiKey.id == key_id).cte(recursive=True)
    return select(tree.union(select(ApiKey.id).join(tree, ApiKey.created_by == tree.c.id)).c.id)


def lock_keys(session: Session, project_id: str) -> None:
    """Keep others from creating and revoking keys of the project until the transaction ends."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def lock_key(session: Session, key_id: str) -> FoundKey:
    """Return a live key, which nobody revokes before the transaction ends: until then it may create others.

    A key that is created beside the revocation of its creator would outlive it otherwise.
    Raises: Unauthenticated.
    """
    return check_live(_find(session, _LOCK, key_id))


def _lock_tree(session: Session, key_id: str) -> None:
    """Lock a key and those that it created; wait for those that they are creating."""
    tree, locked = select(ApiKey.id).where(ApiKey.id.in_(tree_of(key_id))).order_by(ApiKey.id).with_for_update(), 0
    while locked < (size := len(session.scalars(tree).all())):
        locked = size


def check_live(key: FoundKey | None) -> FoundKey:
    """Return a key that is live. Raises: Unauthenticated."""
    if key is None or key.end is not None:
        raise Unauthenticated(ENDS[key.end] if key and key.end else None)
    return key


def well_formed(key: str) -> bool:
    """Return whether the prefix and the checksum are right."""
    body, _, checksum = key.rpartition("_")
    return key.startswith(f"{_PREFIX}_") and checksum == f"{zlib.crc32(body.encode()):08x}"


def check_key(session: Session, key: str) -> ApiKey | None:
    """Return the row of a live key; None for any other."""
    current = authenticate(session, key)
    return current.row if current is not None and current.is_live else None


def authenticate(session: Session, key: str) -> FoundKey | None:
    """Return the key if its secret is right, live or not. An unknown id takes as long as a wrong secret."""
    parts = key.split("_")
    current = find_key(session, parts[1]) if len(parts) >= 4 else None
    right = hmac.compare_digest(_digest(key), current.row.digest if current else _NOBODY)
    return current if right else None


#: The date of a key has come.
HAS_EXPIRED: Final = ApiKey.expires_at <= bindparam("at")


def end_by(has_expired: ColumnElement[bool]) -> Case[str]:
    """Return why a key ends, null while it does not; of rows of keys that are joined with their projects and owners."""
    return case(
        (Project.archived_at.is_not(None), "project_archived"),
        (func.coalesce(ApiKey.revoked_at, ServiceAccount.deleted_at, Account.deleted_at).is_not(None), "key_revoked"),
        (has_expired, "key_expired"),
    )


def join_owner(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Return a statement that selects keys, joined with their owners."""
    accounts = statement.outerjoin(ServiceAccount, ServiceAccount.id == ApiKey.owner_id)
    return accounts.outerjoin(Account, Account.id == ApiKey.owner_id)


_FIND: Final = join_owner(
    select(ApiKey, end_by(HAS_EXPIRED), ServiceAccount.role).outerjoin(Project, Project.id == ApiKey.project_id)
).where(ApiKey.id == bindparam("its_key"))


_LOCK: Final = _FIND.with_for_update(of=ApiKey).execution_options(populate_existing=True)


def find_key(session: Session, key_id: str) -> FoundKey | None:
    """Return a key as it is now, live or not."""
    return _find(session, _FIND, key_id)


def _find(session: Session, statement: Select[Any], key_id: str) -> FoundKey | None:
    row = session.execute(statement, {"its_key": key_id, "at": now()}).first()
    if row is None:
        return None
    key, end, role = row
    return FoundKey(key, end, _permissions_of_owner(session, key, role))


def _permissions_of_owner(session: Session, key: ApiKey, role: str | None) -> frozenset[str]:
    """Return the permissions of a key's owner: a service account has a `role`, a person has all assigned roles.

    Admin keys of the command, and keys that an earlier version has made, have no owner.
    """
    if key.owner_id is None:
        return permissions.ALL if key.is_admin else permissions.of_project_role("member")
    if role is None:
        return roles.permissions_of(session, key.owner_id, key.project_id)
    return permissions.of_project_role(role)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

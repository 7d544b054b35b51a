"""Sessions of people: the keys that a browser gets for a login, once, and that end after twelve hours.

create_token ──▶ a token for the browser, whose SHA-256 is a row ──▶ open_session: the row is deleted, keys made
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count
from jobs.errors import Unauthenticated
from jobs.ledger import audit
from jobs.ledger.tables import Audit
from jobs.security import roles
from jobs.security.accounts import actor_of
from jobs.security.keys import KeyOptions, add_key, id_of, is_in_force, tree_of
from jobs.security.tables import NO_PROJECT, Account, ApiKey, GroupMember, Project, RoleAssignment, SignInToken

PREFIX: Final = "login_"
SESSION_SECONDS: Final = 12 * 3600.0
_TOKEN_SECONDS: Final = 60.0
#: A session has keys of the first so many projects, by name.
_MAX_PROJECTS: Final = 20


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of a session. `admin_key` is None for a person without a role of the organization."""

    admin_key: str | None
    project_keys: tuple[str, ...]


def create_token(session: Session, account_id: str) -> str:
    """Return a token that opens a session of an account within a minute. Remove tokens that have expired."""
    session.execute(delete(SignInToken).where(SignInToken.expires_at < now()), execution_options=UNSEEN)
    token = PREFIX + secrets.token_urlsafe(32)
    session.add(SignInToken(id=_digest(token), account_id=account_id, expires_at=now() + _TOKEN_SECONDS))
    return token


def open_session(session: Session, token: str) -> SessionKeys:
    """Use up a token, and return the keys of a new session.

    Raises: Unauthenticated, for a token that is unknown, used up or expired, and for an account that was removed.
    """
    row = session.get(SignInToken, _digest(token))
    used = delete(SignInToken).where(SignInToken.id == _digest(token), SignInToken.expires_at >= now())
    if row is None or not execute_and_count(session, used, UNSEEN):
        raise Unauthenticated("This login was used before, or has expired.", code="invalid_sign_in_token")
    account = session.get(Account, row.account_id, with_for_update=True)
    if account is None or account.deleted_at is not None:
        raise Unauthenticated("This user was removed.", code="user_removed")
    options: KeyOptions = {
        "name": f"login of {account.email}"[:255],
        "owner_id": account.id,
        "expires_at": now() + SESSION_SECONDS,
        "actor": actor_of(account.id),
    }
    is_admin = bool(roles.permissions_of(session, account.id, NO_PROJECT))
    admin_key = add_key(session, NO_PROJECT, **options) if is_admin else None
    if admin_key is not None:
        options["created_by"] = id_of(admin_key)
    keys: list[str] = []
    for project_id in _projects(session, account.id, all_of_them=is_admin):
        keys.append(add_key(session, project_id, **options))
        options.setdefault("created_by", id_of(keys[0]))
    return SessionKeys(admin_key, tuple(keys))


def close_session(session: Session, key_id: str, request_id: str | None) -> bool:
    """End the keys of the session that a key belongs to; return False for a key of no session.

    Keys of service accounts, which the person created in the session, stay.
    """
    key = session.get_one(ApiKey, key_id)
    account = session.get(Account, key.owner_id) if key.owner_id else None
    if account is None:
        return False
    own = (ApiKey.owner_id == account.id, ApiKey.id.in_(tree_of(key.created_by or key_id)))
    ending = update(ApiKey).where(*own, is_in_force()).values(expires_at=now())
    session.execute(ending, execution_options=UNSEEN)
    audit.record(session, actor=actor_of(account.id), action="logout", target=account.id, request_id=request_id)
    return True


def idle_login_keys() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of keys of sessions that have ended, with which nothing was done."""
    of_person = exists().where(Account.id == ApiKey.owner_id)
    acted = exists().where(Audit.actor == audit.actor_of("") + ApiKey.id)
    return ApiKey.expires_at <= now(), ApiKey.last_used_at.is_(None), of_person, ~acted


def _projects(session: Session, account_id: str, *, all_of_them: bool) -> list[str]:
    """Return the projects in which an account has a role, the first ones by name."""
    groups = select(GroupMember.group_id).where(GroupMember.account_id == account_id)
    principal = RoleAssignment.principal_id
    assigned = select(RoleAssignment.project_id).where(or_(principal == account_id, principal.in_(groups)))
    live = select(Project.id).where(Project.archived_at.is_(None)).order_by(Project.name).limit(_MAX_PROJECTS)
    return list(session.scalars(live if all_of_them else live.where(Project.id.in_(assigned))))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

"""Accounts of people: invited by address, made at the first login, removed with all that they hold."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, flush_unique
from jobs.errors import InvalidRequest, PermissionDenied
from jobs.ids import new_id
from jobs.ledger import audit
from jobs.security import roles
from jobs.security.tables import (
    NO_PROJECT,
    Account,
    AccountGroup,
    ApiKey,
    GroupMember,
    Invite,
    Project,
    RoleAssignment,
    SignInToken,
)
from jobs.settings import Settings

INVITE_SECONDS: Final = 7 * 86_400
_ADDRESS: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, as an identity provider knows the person. `email` is in lower case and verified by the provider."""

    issuer: str
    subject: str
    email: str
    name: str | None
    groups: Sequence[str]


def actor_of(account_id: str) -> str:
    """Return the actor of what a person does without a key: to log in."""
    return f"user:{account_id}"


def login_url(config: Settings) -> str | None:
    """Return the URL at which people log in; None where no identity provider is set."""
    return f"{config.url}/login" if config.oidc_issuer else None


def parse_email(text: str) -> str:
    """Return an e-mail address in lower case. Raises: ValueError, for a text that is none."""
    address = text.strip().lower()
    if not _ADDRESS.fullmatch(address):
        raise ValueError("This is not an e-mail address.")
    return address


def invite(
    session: Session, email: str, role: str, projects: Sequence[dict[str, str]], *, actor: str, request_id: str | None
) -> Invite:
    """Let an address become an account at its first login, with a role of the organization and memberships.

    An invite of the address that has expired is replaced.
    Raises: InvalidRequest, for an address that has an account or an invite.
    """
    if session.scalar(select(Account.id).where(Account.email == email, Account.deleted_at.is_(None)).limit(1)):
        raise InvalidRequest("A user has this address already.", param="email", code="user_exists")
    at = now()
    expired = (Invite.email == email, Invite.accepted_at.is_(None), Invite.expires_at <= at)
    session.execute(delete(Invite).where(*expired), execution_options=UNSEEN)
    row = Invite(
        id=new_id("invite-"),
        email=email,
        role=role,
        projects=list(projects),
        created_at=at,
        expires_at=at + INVITE_SECONDS,
    )
    session.add(row)
    refusal = InvalidRequest("This address is invited already.", param="email", code="already_invited")
    flush_unique(session, refusal)
    audit.record(
        session,
        actor=actor,
        action="invite.create",
        target=row.id,
        request_id=request_id,
        details={"email": email, "role": role},
    )
    return row


def find_by_email(session: Session, email: str) -> Account | None:
    """Return the account with an address.

    Raises: InvalidRequest, where several have it: identity providers may give one address to several people.
    """
    live = (Account.email == email.strip().lower(), Account.deleted_at.is_(None))
    rows = session.scalars(select(Account).where(*live).limit(2)).all()
    if len(rows) > 1:
        raise InvalidRequest("Several users have this address: name the id.", param="email", code="ambiguous_email")
    return rows[0] if rows else None


def log_in(session: Session, identity: Identity, request_id: str | None) -> Account:
    """Return the account of an identity; make it, if the identity's address is invited.

    The groups that the identity provider fills get the account, or lose it, as the identity says.
    Raises: PermissionDenied, for an identity that has no account and no invite.
    """
    bound = (Account.issuer == identity.issuer, Account.subject == identity.subject, Account.deleted_at.is_(None))
    account = session.scalar(select(Account).where(*bound).with_for_update())
    if account is None:
        account = _accept(session, identity, request_id)
    actor = actor_of(account.id)
    if account.email != identity.email:
        details = {"email": identity.email, "previous_email": account.email}
        audit.record(
            session, actor=actor, action="user.update", target=account.id, request_id=request_id, details=details
        )
    account.email, account.name, account.last_login_at = identity.email, identity.name, now()
    session.flush()
    _join_groups(session, account.id, identity.groups)
    audit.record(session, actor=actor, action="login.succeed", target=account.id, request_id=request_id)
    return account


def _accept(session: Session, identity: Identity, request_id: str | None) -> Account:
    pending = (Invite.email == identity.email, Invite.accepted_at.is_(None), Invite.expires_at > now())
    accepted = session.scalar(select(Invite).where(*pending).with_for_update())
    if accepted is None:
        raise PermissionDenied("This address is not invited. Ask an owner of the organization.", code="not_invited")
    account = Account(
        id=new_id("user_"),
        email=identity.email,
        issuer=identity.issuer,
        subject=identity.subject,
        created_at=now(),
    )
    session.add(account)
    session.flush()  # one of two first logins at once is refused here, by the index of identities
    actor = actor_of(account.id)
    accepted.accepted_at = now()
    given = [(NO_PROJECT, accepted.role), *((entry["id"], entry["role"]) for entry in accepted.projects or ())]
    live = set(session.scalars(select(Project.id).where(Project.archived_at.is_(None))))
    for project_id, name in given:
        role = roles.role_by_name(name, project_id)
        if role is not None and project_id in live | {NO_PROJECT}:
            roles.assign(session, role.id, account.id, project_id, actor)
    details = {"role": accepted.role}
    audit.record(session, actor=actor, action="invite.accept", target=accepted.id, request_id=request_id)
    audit.record(session, actor=actor, action="user.add", target=account.id, request_id=request_id, details=details)
    return account


def _join_groups(session: Session, account_id: str, claims: Collection[str]) -> None:
    """Make an account a member of exactly those groups with a claim whose claim the identity has."""
    filled = {
        group.id: group.claim for group in session.scalars(select(AccountGroup).where(AccountGroup.claim.is_not(None)))
    }
    joined = set(
        session.scalars(
            select(GroupMember.group_id).where(GroupMember.account_id == account_id, GroupMember.group_id.in_(filled))
        )
    )
    claimed = {group_id for group_id, claim in filled.items() if claim in claims}
    for group_id in claimed - joined:
        session.add(GroupMember(group_id=group_id, account_id=account_id, created_at=now()))
    leave_groups(session, account_id, joined - claimed)
    for action, changed in (("group.member.add", claimed - joined), ("group.member.remove", joined - claimed)):
        audit.record_all(session, ((group_id, None) for group_id in changed), actor=actor_of(account_id), action=action)


def leave_groups(session: Session, account_id: str, group_ids: Collection[str]) -> None:
    """Remove an account from groups."""
    members = (GroupMember.account_id == account_id, GroupMember.group_id.in_(list(group_ids)))
    session.execute(delete(GroupMember).where(*members), execution_options=UNSEEN)


def remove(session: Session, account: Account, *, actor: str, request_id: str | None) -> None:
    """Remove an account with its roles and memberships, and revoke its keys."""
    account.deleted_at = now()
    for column in (GroupMember.account_id, RoleAssignment.principal_id, SignInToken.account_id):
        session.execute(delete(column.class_).where(column == account.id), execution_options=UNSEEN)
    revoke_keys(session, account.id, actor)
    audit.record(session, actor=actor, action="user.delete", target=account.id, request_id=request_id)


def revoke_keys(session: Session, account_id: str, actor: str) -> None:
    """Revoke all live keys of an account."""
    live = select(ApiKey.id, ApiKey.project_id).where(ApiKey.owner_id == account_id, ApiKey.revoked_at.is_(None))
    keys: list[Any] = list(session.execute(live))
    owned = update(ApiKey).where(ApiKey.id.in_([key_id for key_id, _ in keys])).values(revoked_at=now())
    session.execute(owned, execution_options=UNSEEN)
    revoked: Iterable[tuple[str, str | None]] = ((key_id, project_id or None) for key_id, project_id in keys)
    audit.record_all(session, revoked, actor=actor, action="key.revoke")

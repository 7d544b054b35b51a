"""Invites: the addresses that may become users at their first login. No mail is sent."""

from typing import Annotated, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.admin.principals import check_project, find_predefined_role
from api.deps import Admin, AdminContext
from api.errors import clip
from api.http.bodies import Body, Many, resource
from api.http.fields import unix_seconds
from api.http.key_fields import check_grant
from api.http.paging import After, Limit20, find
from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.security import accounts
from jobs.security.projects import DEFAULT_PROJECT
from jobs.security.tables import NO_PROJECT, Invite, Project

router = resource("Organization", area="management", admin=True)

InviteId = Annotated[str, Path(max_length=64, description="The id of an invite.")]


Email = Annotated[str, Field(max_length=255), AfterValidator(accounts.parse_email)]


class InvitedProject(Body):
    """A project that the invited user becomes a member of."""

    id: Annotated[str, Field(max_length=64)]
    role: Literal["member", "owner"]


class NewInvite(Body):
    """An invite. Without `projects` the user becomes a member of the project `default`; with an empty list, of none."""

    email: Email
    role: Literal["reader", "owner"]
    projects: Annotated[Many[InvitedProject], Field(max_length=100)] | None = None


class MembershipOffer(BaseModel):
    """A project that the invited user becomes a member of."""

    id: str
    role: Literal["member", "owner"]


class InviteObject(BaseModel):
    """An invite. No mail is sent: give the invited person `login_url`, which is null without a login by OIDC."""

    id: str
    object: Literal["organization.invite"] = "organization.invite"
    email: str
    role: Literal["reader", "owner"]
    status: Literal["pending", "accepted", "expired"]
    created_at: int
    expires_at: int
    accepted_at: int | None
    projects: list[MembershipOffer]
    login_url: str | None


class InviteDeleted(BaseModel):
    """An invite that was withdrawn."""

    id: str
    object: Literal["organization.invite.deleted"] = "organization.invite.deleted"
    deleted: Literal[True] = True


@router.get("/organization/invites")
def list_invites(call: Admin, after: After = None, limit: Limit20 = 20) -> AdminPage[InviteObject]:
    """List the invites, the newest first."""
    with call.db.read() as session:
        rows, more = find(session, select(Invite), Invite, after=after, limit=limit)
    return admin_page(rows, more, lambda row: _show_invite(call, row))


@router.get("/organization/invites/{invite_id}")
def retrieve_invite(call: Admin, invite_id: InviteId) -> InviteObject:
    """Return an invite."""
    with call.db.read() as session:
        return _show_invite(call, _find_invite(session, invite_id))


@router.post("/organization/invites")
def create_invite(call: Admin, body: NewInvite) -> InviteObject:
    """Invite an address: whoever first logs in with it becomes a user, within seven days."""
    with call.db.write() as session:
        projects = [entry.model_dump() for entry in body.projects] if body.projects is not None else _default(session)
        check_grant(call.caller, (), find_predefined_role(body.role, NO_PROJECT).permissions)
        for entry in projects:
            check_project(session, entry["id"], changes=True)
            check_grant(call.caller, (), find_predefined_role(entry["role"], entry["id"]).permissions)
        row = accounts.invite(session, body.email, body.role, projects, actor=call.actor, request_id=call.request_id)
        return _show_invite(call, row)


def _default(session: Session) -> list[dict[str, str]]:
    live = select(Project.id).where(Project.name == DEFAULT_PROJECT, Project.archived_at.is_(None))
    return [{"id": project_id, "role": "member"} for project_id in session.scalars(live)]


@router.delete("/organization/invites/{invite_id}")
def delete_invite(call: Admin, invite_id: InviteId) -> InviteDeleted:
    """Withdraw an invite that was not accepted."""
    with call.db.write() as session:
        row = _find_invite(session, invite_id, lock=True)
        if row.accepted_at is not None:
            message = "An invite that was accepted cannot be deleted: delete the user."
            raise InvalidRequest(message, param="invite_id", code="invite_accepted")
        session.delete(row)
        call.record(session, "invite.delete", invite_id)
        return InviteDeleted(id=invite_id)


def _find_invite(session: Session, invite_id: str, *, lock: bool = False) -> Invite:
    row = session.get(Invite, invite_id, with_for_update=lock)
    if row is None:
        raise NotFound(f"No invite found with id '{clip(invite_id)}'.", param="invite_id")
    return row


def _show_invite(call: AdminContext, row: Invite) -> InviteObject:
    ended = "accepted" if row.accepted_at is not None else "expired"
    return InviteObject(
        id=row.id,
        email=row.email,
        role=row.role,
        status="pending" if row.accepted_at is None and row.expires_at > now() else ended,
        created_at=int(row.created_at),
        expires_at=int(row.expires_at),
        accepted_at=unix_seconds(row.accepted_at),
        projects=[MembershipOffer(**entry) for entry in row.projects or ()],
        login_url=accounts.login_url(call.config),
    )

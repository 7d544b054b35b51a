"""Groups of users, which get roles together, and their members."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, Limit1000, admin_page
from api.admin.principals import GroupId, UserId, find_group, find_user
from api.deps import Admin
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.key_fields import check_grant
from api.http.paging import After, Order, find
from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count, flush_unique, insert_into
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.security import accounts, roles
from jobs.security.tables import Account, AccountGroup, GroupMember, RoleAssignment

router = resource("Organization", area="groups", admin=True)

Name = Annotated[str, Field(min_length=1, max_length=255)]
Claim = Annotated[
    str | None,
    Field(max_length=255, description="The value of the OIDC groups claim whose users are in the group at each login."),
]


class NewGroup(Body):
    """A group. With a `claim` the identity provider says who is in it."""

    name: Name
    claim: Claim = None


class GroupUpdate(BaseModel):
    """A group that was renamed."""

    id: str
    object: Literal["group"] = "group"
    name: str
    claim: str | None
    created_at: int
    is_scim_managed: Literal[False] = False


class GroupObject(GroupUpdate):
    """A group of users."""

    group_type: Literal["group"] = "group"


class GroupDeleted(BaseModel):
    """A group that was deleted."""

    id: str
    object: Literal["group.deleted"] = "group.deleted"
    deleted: Literal[True] = True


class NewMember(Body):
    """The user who joins a group."""

    user_id: Annotated[str, Field(max_length=64)]


class MemberAdded(BaseModel):
    """A user who joined a group."""

    object: Literal["group.user"] = "group.user"
    user_id: str
    group_id: str


class Member(BaseModel):
    """A user in a group. `name` is the address where the user has no name."""

    id: str
    name: str
    email: str


class MemberDetails(Member):
    """A user in a group, in full."""

    picture: None = None
    is_service_account: Literal[False] = False
    user_type: Literal["user"] = "user"


class MemberRemoved(BaseModel):
    """A user who was removed from a group."""

    object: Literal["group.user.deleted"] = "group.user.deleted"
    deleted: Literal[True] = True


@router.get("/organization/groups")
def list_groups(
    call: Admin, after: After = None, limit: Limit1000 = 100, order: Order = "asc"
) -> AdminPage[GroupObject]:
    """List the groups of the organization."""
    with call.db.read() as session:
        rows, more = find(session, select(AccountGroup), AccountGroup, after=after, limit=limit, order=order)
    return admin_page(rows, more, show_group)


@router.get("/organization/groups/{group_id}")
def retrieve_group(call: Admin, group_id: GroupId) -> GroupObject:
    """Return a group."""
    with call.db.read() as session:
        return show_group(find_group(session, group_id))


@router.post("/organization/groups")
def create_group(call: Admin, body: NewGroup) -> GroupObject:
    """Create a group, which has no roles."""
    with call.db.write() as session:
        group = AccountGroup(id=new_id("group_"), name=body.name, claim=body.claim, created_at=now())
        session.add(group)
        _write_group(session)
        call.record(session, "group.create", group.id, {"group_name": body.name, "claim": body.claim})
        return show_group(group)


@router.post("/organization/groups/{group_id}")
def update_group(call: Admin, group_id: GroupId, body: NewGroup) -> GroupUpdate:
    """Rename a group. A `claim` replaces the one before; without it the claim stays."""
    with call.db.write() as session:
        group = find_group(session, group_id)
        if "claim" in body.model_fields_set and body.claim != group.claim:
            check_grant(call.caller, (), roles.permissions_of_roles(session, group_id))
            group.claim = body.claim
            _write_group(session)
        group.name = body.name
        call.record(session, "group.update", group_id, {"group_name": body.name, "claim": group.claim})
        return GroupUpdate(**_fields(group))


@router.delete("/organization/groups/{group_id}")
def delete_group(call: Admin, group_id: GroupId) -> GroupDeleted:
    """Delete a group, and take its roles from its members."""
    with call.db.write() as session, roles.keep_an_owner(session):
        session.delete(find_group(session, group_id))
        session.execute(delete(GroupMember).where(GroupMember.group_id == group_id), execution_options=UNSEEN)
        held = RoleAssignment.principal_id == group_id
        session.execute(delete(RoleAssignment).where(held), execution_options=UNSEEN)
        call.record(session, "group.delete", group_id)
        return GroupDeleted(id=group_id)


def _write_group(session: Session) -> None:
    """Write a group. Raises: InvalidRequest, where another one has its claim."""
    flush_unique(session, InvalidRequest("Another group has this claim.", param="claim", code="claim_in_use"))


@router.get("/organization/groups/{group_id}/users")
def list_members(
    call: Admin, group_id: GroupId, after: After = None, limit: Limit1000 = 100, order: Order = "desc"
) -> AdminPage[Member]:
    """List the users in a group."""
    members = select(GroupMember.account_id).where(GroupMember.group_id == group_id)
    with call.db.read() as session:
        find_group(session, group_id)
        statement = select(Account).where(Account.id.in_(members))
        rows, more = find(session, statement, Account, after=after, limit=limit, order=order)
    return admin_page(rows, more, lambda row: Member(**_person(row)))


@router.get("/organization/groups/{group_id}/users/{user_id}")
def retrieve_member(call: Admin, group_id: GroupId, user_id: UserId) -> MemberDetails:
    """Return a user in a group."""
    with call.db.read() as session:
        _find_member(session, group_id, user_id)
        return MemberDetails(**_person(session.get_one(Account, user_id)))


@router.post("/organization/groups/{group_id}/users")
def add_member(call: Admin, group_id: GroupId, body: NewMember) -> MemberAdded:
    """Add a user to a group. It is no error if the user is in it."""
    with call.db.write() as session:
        _check_manual(find_group(session, group_id))
        find_user(session, body.user_id)
        check_grant(call.caller, (), roles.permissions_of_roles(session, group_id))
        new = insert_into(session, GroupMember).values(group_id=group_id, account_id=body.user_id, created_at=now())
        if execute_and_count(session, new.on_conflict_do_nothing(), {"preserve_rowcount": True}):
            call.record(session, "group.member.add", group_id, {"user_id": body.user_id})
        return MemberAdded(user_id=body.user_id, group_id=group_id)


@router.delete("/organization/groups/{group_id}/users/{user_id}")
def remove_member(call: Admin, group_id: GroupId, user_id: UserId) -> MemberRemoved:
    """Remove a user from a group, and with it the roles that the user has by the group."""
    with call.db.write() as session, roles.keep_an_owner(session):
        _check_manual(find_group(session, group_id))
        _find_member(session, group_id, user_id)
        accounts.leave_groups(session, user_id, [group_id])
        call.record(session, "group.member.remove", group_id, {"user_id": user_id})
        return MemberRemoved()


def _check_manual(group: AccountGroup) -> None:
    """Check that nobody but admin keys fills a group. Raises: InvalidRequest."""
    if group.claim is not None:
        message = "The identity provider says who is in this group: it has a 'claim'."
        raise InvalidRequest(message, param="group_id", code="group_has_claim")


def _find_member(session: Session, group_id: str, user_id: str) -> GroupMember:
    find_group(session, group_id)
    member = session.get(GroupMember, (group_id, user_id))
    if member is None:
        raise NotFound(f"No user with id '{clip(user_id)}' is in this group.", param="user_id")
    return member


def show_group(group: AccountGroup) -> GroupObject:
    """Return a group as clients see it."""
    return GroupObject(**_fields(group))


def _fields(group: AccountGroup) -> dict[str, str | int | None]:
    return {"id": group.id, "name": group.name, "claim": group.claim, "created_at": int(group.created_at)}


def _person(account: Account) -> dict[str, str]:
    return {"id": account.id, "name": account.name or account.email, "email": account.email}

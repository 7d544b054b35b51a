"""Roles: named lists of permissions, assigned to accounts and groups on the organization or on one project.

    permissions of an account in a project = those of all roles that it, or a group that it is in, has on the
                                               organization and on that project

The predefined roles are constants of `jobs.security.permissions` and no rows. A membership of a project is the
assignment of a predefined role of projects.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Select, delete, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count, insert_into
from jobs.errors import InvalidRequest
from jobs.security.permissions import PREDEFINED, Level, PredefinedRole, expand
from jobs.security.tables import NO_PROJECT, Account, GroupMember, Role, RoleAssignment

#: Custom roles of the organization, and of each project.
MAX_ROLES: Final = 200
_OWNER: Final = (RoleAssignment.role_id == "role-org-owner", RoleAssignment.project_id == NO_PROJECT)


def level_of(project_id: str) -> Level:
    """Return where a role of this project holds; an empty id is that of the organization."""
    return "project" if project_id else "organization"


def predefined_roles(level: Level) -> Sequence[PredefinedRole]:
    """Return the predefined roles that can be assigned on the organization, or on a project."""
    return [role for role in PREDEFINED.values() if role.level == level]


def permissions_of(session: Session, principal_id: str, project_id: str) -> frozenset[str]:
    """Return what an account or a group may do in a project; with an empty id, on the organization."""
    return _union(session, _assignments_of(principal_id).where(RoleAssignment.project_id.in_((NO_PROJECT, project_id))))


def name_of_role(session: Session, principal_id: str, project_id: str) -> str | None:
    """Return the SDK's word for the widest predefined role that a principal has on a project, or on the organization.

    None, where it has only custom ones, or none.
    """
    ids = set(session.scalars(_assignments_of(principal_id).where(RoleAssignment.project_id == project_id)))
    return next((role.name for role in predefined_roles(level_of(project_id)) if role.id in ids), None)


def _assignments_of(principal_id: str) -> Select[str]:
    """Return the statement of the ids of roles that a principal has, by itself or by a group."""
    groups = select(GroupMember.group_id).where(GroupMember.account_id == principal_id)
    principal = RoleAssignment.principal_id
    return select(RoleAssignment.role_id).where(or_(principal == principal_id, principal.in_(groups)))


def permissions_of_roles(session: Session, group_id: str) -> frozenset[str]:
    """Return what the members of a group may do by its roles, on the organization or on any project."""
    return _union(session, select(RoleAssignment.role_id).where(RoleAssignment.principal_id == group_id))


def _union(session: Session, role_ids: Select[str]) -> frozenset[str]:
    ids = set(session.scalars(role_ids))
    custom = session.scalars(select(Role.permissions).where(Role.id.in_(ids - PREDEFINED.keys())))
    return frozenset().union(*(PREDEFINED[id_].permissions for id_ in ids & PREDEFINED.keys()), *map(expand, custom))


def find_role(session: Session, role_id: str, project_id: str, *, lock: bool = False) -> Role | PredefinedRole | None:
    """Return a role that can be assigned on a project; with an empty id, on the organization.

    With `lock` nobody deletes it before the transaction ends.
    """
    role = PREDEFINED.get(role_id) or session.get(Role, role_id, with_for_update=lock or None)
    if isinstance(role, PredefinedRole):
        return role if role.level == level_of(project_id) else None
    return role if role is not None and role.project_id == project_id else None


def role_by_name(name: str, project_id: str) -> PredefinedRole | None:
    """Return the predefined role with the SDK's word for it, such as `owner`."""
    return next((role for role in predefined_roles(level_of(project_id)) if role.name == name), None)


def assign(session: Session, role_id: str, principal_id: str, project_id: str, created_by: str) -> bool:
    """Assign a role; return False if the principal has it. Safe against concurrent assignment."""
    row = {"role_id": role_id, "principal_id": principal_id, "project_id": project_id}
    new = insert_into(session, RoleAssignment).values(**row, created_at=now(), created_by=created_by)
    return execute_and_count(session, new.on_conflict_do_nothing(), {"preserve_rowcount": True}) == 1


def unassign(session: Session, principal_id: str, project_id: str, role_ids: Iterable[str]) -> bool:
    """Remove roles of a principal on a project, or on the organization; return whether it had any of them."""
    rows = delete(RoleAssignment).where(
        RoleAssignment.principal_id == principal_id,
        RoleAssignment.project_id == project_id,
        RoleAssignment.role_id.in_(list(role_ids)),
    )
    return bool(execute_and_count(session, rows, UNSEEN))


def set_predefined_role(
    session: Session, role: PredefinedRole, principal_id: str, project_id: str, created_by: str
) -> bool:
    """Give a principal one predefined role in place of those that it has; return False if it has that one alone."""
    others = [other.id for other in predefined_roles(role.level) if other is not role]
    had_others = unassign(session, principal_id, project_id, others)
    return assign(session, role.id, principal_id, project_id, created_by) or had_others


@contextmanager
def keep_an_owner(session: Session) -> Iterator[None]:
    """Run a change that takes roles away. The roles of owners of the organization are locked until it is committed.

    Raises: InvalidRequest, where the change leaves no owner and there was one.
    """
    session.execute(select(RoleAssignment.principal_id).where(*_OWNER).order_by("principal_id").with_for_update())
    had_owner = _has_owner(session)
    yield
    if had_owner and not _has_owner(session):
        message = "This is the last owner of the organization. Make another user an owner first."
        raise InvalidRequest(message, code="last_owner")


def _has_owner(session: Session) -> bool:
    principals = select(RoleAssignment.principal_id).where(*_OWNER)
    members = select(GroupMember.account_id).where(GroupMember.group_id.in_(principals))
    owners = select(Account.id).where(
        Account.deleted_at.is_(None), or_(Account.id.in_(principals), Account.id.in_(members))
    )
    return session.scalar(owners.limit(1)) is not None

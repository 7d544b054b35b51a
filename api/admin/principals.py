"""The holders of roles, and where the roles hold."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Path
from sqlalchemy.orm import Session

from api.admin.queries import find_active_project, find_project
from api.errors import clip
from jobs.errors import InvalidRequest, NotFound
from jobs.security import roles
from jobs.security.permissions import PredefinedRole
from jobs.security.tables import NO_PROJECT, Account, AccountGroup, Role

UserId = Annotated[str, Path(max_length=64, description="The id of a user.")]
GroupId = Annotated[str, Path(max_length=64, description="The id of a group.")]
ProjectId = Annotated[str, Path(max_length=64, description="The id of a project.")]
RoleId = Annotated[str, Path(max_length=64, description="The id of a role.")]


@dataclass(frozen=True, slots=True)
class Principal:
    """A holder of roles."""

    type: Literal["user", "group"]
    id: str

    def find(self, session: Session) -> Account | AccountGroup:
        """Return its row. Raises: NotFound."""
        return find_user(session, self.id) if self.type == "user" else find_group(session, self.id)


def user_of(user_id: UserId) -> Principal:
    """Return the user that the path names."""
    return Principal("user", user_id)


def group_of(group_id: GroupId) -> Principal:
    """Return the group that the path names."""
    return Principal("group", group_id)


def organization() -> str:
    """Return the empty id, which stands for the organization."""
    return NO_PROJECT


def project_of(project_id: ProjectId) -> str:
    """Return the project that the path names."""
    return project_id


InOrganization = Depends(organization)
InProject = Depends(project_of)


def find_user(session: Session, user_id: str) -> Account:
    """Return a user that was not deleted. Raises: NotFound."""
    account = session.get(Account, user_id)
    if account is None or account.deleted_at is not None:
        raise NotFound(f"No user found with id '{clip(user_id)}'.", param="user_id")
    return account


def find_group(session: Session, group_id: str) -> AccountGroup:
    """Return a group. Raises: NotFound."""
    group = session.get(AccountGroup, group_id)
    if group is None:
        raise NotFound(f"No group found with id '{clip(group_id)}'.", param="group_id")
    return group


def check_project(session: Session, project_id: str, *, changes: bool = False) -> None:
    """Check that a project exists, and with `changes` that it is not archived; an empty id is the organization.

    Raises: NotFound, InvalidRequest.
    """
    if project_id != NO_PROJECT:
        (find_active_project if changes else find_project)(session, project_id)


def find_role(session: Session, role_id: str, project_id: str, *, lock: bool = False) -> Role | PredefinedRole:
    """Return a role that can be assigned on a project, or on the organization. Raises: NotFound."""
    role = roles.find_role(session, role_id, project_id, lock=lock)
    if role is None:
        raise NotFound(f"No role of the {_location_name(project_id)} found with id '{clip(role_id)}'.", param="role_id")
    return role


def find_predefined_role(name: str, project_id: str) -> PredefinedRole:
    """Return the predefined role with this name. Raises: InvalidRequest."""
    role = roles.role_by_name(name, project_id)
    if role is None:
        names = [f"'{known.name}'" for known in roles.predefined_roles(roles.level_of(project_id))]
        message = f"Invalid value: '{clip(name)}'. Supported values are: {', '.join(names)}."
        raise InvalidRequest(message, param="role", code="invalid_value")
    return role


def _location_name(project_id: str) -> str:
    return "project" if project_id else "organization"

"""`nightmill users`: list, invite and remove people, and give and take their roles.

The database is used directly, since the first owner of the organization has no key yet.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions
from cli.terminal import moment

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jobs.security.tables import Account

app = Group("List, invite and remove people, and give and take their roles.")
Person = Annotated[
    str, typer.Argument(metavar="USER", help="The user's address or id, as `nightmill users list` shows.")
]
_OPERATOR = "operator"


@app.command("list")
def list_(options: HostOptions) -> None:
    """List the users and the invites that nobody has accepted."""
    from sqlalchemy import select

    from cli.up.effective import opened
    from jobs.security.tables import Account, Invite

    with opened(options.data_dir) as db, db.read() as session:
        users = session.scalars(select(Account).where(Account.deleted_at.is_(None)).order_by(Account.email))
        rows: list[dict[str, Any]] = [
            {
                "id": user.id,
                "email": user.email,
                "name": user.name,
                "status": "user",
                "last_login": user.last_login_at,
                "expires": None,
            }
            for user in users
        ]
        invites = session.scalars(select(Invite).where(Invite.accepted_at.is_(None)).order_by(Invite.email))
        rows += [
            {
                "id": invite.id,
                "email": invite.email,
                "name": None,
                "status": "invited",
                "last_login": None,
                "expires": invite.expires_at,
            }
            for invite in invites
        ]
    options.show_entries(rows, ("id", "email", "name", "status", "last login", "invite ends"), _row)


def _row(user: dict[str, Any]) -> tuple[object, ...]:
    times = moment(user["last_login"]), moment(user["expires"])
    return user["id"], user["email"], user["name"] or "-", user["status"], *times


@app.command()
def invite(
    options: HostOptions,
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="The address that the identity provider has verified.")],
    owner: Annotated[bool, typer.Option("--owner", help="An owner of the organization, and not a reader.")] = False,
    project: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also a member of this project; may be repeated.")
    ] = None,
) -> None:
    """Invite an address: whoever first logs in with it within seven days becomes a user. No mail is sent."""
    from cli.up.effective import effective, opened
    from jobs.security import accounts

    try:
        address = accounts.parse_email(email)
    except ValueError:
        raise CliError(f"'{email}' is no e-mail address") from None
    with opened(options.data_dir) as db, db.write() as session:
        memberships = [{"id": _project_id(session, name), "role": "member"} for name in project or ()]
        role = "owner" if owner else "reader"
        invite_id = accounts.invite(session, address, role, memberships, actor=_OPERATOR, request_id=None).id
    url = accounts.login_url(effective(data_dir=options.data_dir))
    where = f"log in at {url}" if url else "nobody can log in until NIGHTMILL_OIDC_ISSUER is set"
    options.show({"id": invite_id, "email": address, "login_url": url}, f"invited {address}; {where}")


@app.command()
def remove(options: HostOptions, user: Person) -> None:
    """Remove a user or an invite. The user's keys are revoked, and no request with them is accepted any more."""
    from sqlalchemy import select

    from cli.up.effective import opened
    from jobs.ledger import audit
    from jobs.security import accounts
    from jobs.security.tables import Invite

    with opened(options.data_dir) as db, db.write() as session:
        account = _find(session, user)
        if account is not None:
            accounts.remove(session, account, actor=_OPERATOR, request_id=None)
            removed = account.id
        else:
            named = (Invite.id == user) | (Invite.email == user.lower())
            pending = session.scalars(select(Invite).where(named, Invite.accepted_at.is_(None))).first()
            if pending is None:
                raise _unknown(user)
            session.delete(pending)
            audit.record(session, actor=_OPERATOR, action="invite.delete", target=pending.id)
            removed = pending.id
    options.show({"id": removed, "removed": True}, f"removed {removed}")


@app.command("roles")
def roles_(
    options: HostOptions,
    user: Person,
    give: Annotated[list[str] | None, typer.Option(metavar="ROLE", help="Give this role; may be repeated.")] = None,
    take: Annotated[list[str] | None, typer.Option(metavar="ROLE", help="Take this role; may be repeated.")] = None,
    project: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="On this project, and not on the organization.")
    ] = "",
) -> None:
    """Give and take roles of a user, and list those of the user's own. A role is an id, or a name such as `owner`."""
    from sqlalchemy import select

    from cli.up.effective import opened
    from jobs.security import keys
    from jobs.security.tables import NO_PROJECT, RoleAssignment

    with opened(options.data_dir) as db, db.write() as session:
        account = _find(session, user)
        if account is None:
            raise _unknown(user)
        project_id = _project_id(session, project) if project else NO_PROJECT
        _change(session, account.id, project_id, give or [], take or [])
        names = keys.project_names(session)
        assigned = session.scalars(
            select(RoleAssignment)
            .where(RoleAssignment.principal_id == account.id)
            .order_by(RoleAssignment.project_id, RoleAssignment.role_id)
        )
        rows = [{"role": row.role_id, "project": names.get(row.project_id)} for row in assigned]
    options.show_entries(rows, ("role", "project"), lambda row: (row["role"], row["project"] or "(organization)"))


def _change(session: "Session", account_id: str, project_id: str, give: list[str], take: list[str]) -> None:
    from jobs.ledger import audit
    from jobs.security import roles

    for action, names in (("role.assign", give), ("role.unassign", take)):
        for name in names:
            role = roles.role_by_name(name, project_id) or roles.find_role(session, name, project_id, lock=True)
            if role is None:
                raise CliError(
                    f"there is no role '{name}' {'of this project' if project_id else 'of the organization'}"
                )
            changed = (
                roles.assign(session, role.id, account_id, project_id, _OPERATOR)
                if action == "role.assign"
                else roles.unassign(session, account_id, project_id, [role.id])
            )
            if not changed:
                continue
            details = {
                "principal_id": account_id,
                "principal_type": "user",
                "resource_id": project_id,
                "resource_type": f"api.{roles.level_of(project_id)}",
            }
            audit.record(
                session,
                actor=_OPERATOR,
                action=action,
                target=role.id,
                project_id=project_id or None,
                details=details,
            )


def _find(session: "Session", name: str) -> "Account | None":
    """Return the user with an id or an address. Raises: InvalidRequest, where several have the address."""
    from jobs.security import accounts
    from jobs.security.tables import Account

    account = session.get(Account, name)
    return account if account is not None and account.deleted_at is None else accounts.find_by_email(session, name)


def _project_id(session: "Session", name: str) -> str:
    from jobs.security.keys import find_project

    project = find_project(session, name)
    if project is None:
        raise CliError(f"there is no project '{name}'")
    return project.id


def _unknown(name: str) -> CliError:
    return CliError(f"there is no user '{name}'; `nightmill users list` shows them")

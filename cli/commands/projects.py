"""`nightmill projects`: list, create, change and archive projects, in the database of this host."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import External, HostOptions, MediaUrls
from cli.terminal import moment

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jobs.security.projects import Changes
    from jobs.security.tables import Project

app = Group("List, create, change and archive projects.")
_ACTOR = "operator"
_MAX_NAME = 255
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name or id.")]
Weight = Annotated[
    float | None, typer.Option(min=0.001, max=1000, help="Its share of the workers relative to other projects.")
]


@app.command("list")
def list_(
    options: HostOptions, archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False
) -> None:
    """List the projects, the oldest first."""
    from sqlalchemy import select

    from cli.up.effective import opened
    from jobs.security.tables import Project

    statement = select(Project).order_by(Project.created_at, Project.id)
    if not archived:
        statement = statement.where(Project.archived_at.is_(None))
    with opened(options.data_dir) as db, db.read() as session:
        rows = [_describe(session, project) for project in session.scalars(statement)]
    head = ("id", "name", "weight", "external", "media URLs", "live keys", "created", "archived")
    options.show_entries(rows, head, lambda row: [*_cells(row).values()])


@app.command()
def create(
    options: HostOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="No two projects that are live have one name.")],
    weight: Weight = None,
    external: External = None,
    media_urls: MediaUrls = None,
) -> None:
    """Create a project, which begins without keys."""
    from cli.up.effective import opened
    from jobs.security import projects

    with opened(options.data_dir) as db, db.write() as session:
        changes = _changes(weight=weight, allow_external=external, allow_media_urls=media_urls)
        project = projects.create(session, _check_name(name), actor=_ACTOR, changes=changes)
        options.show(_describe(session, project), f"created {project.id}")


@app.command()
def show(options: HostOptions, project: ProjectName) -> None:
    """Show a project and its settings."""
    from cli.up.effective import opened

    with opened(options.data_dir) as db, db.read() as session:
        row = _describe(session, _find(session, project))
    options.show(row, *(f"{label}: {value}" for label, value in _cells(row).items()))


@app.command()
def update(
    options: HostOptions,
    project: ProjectName,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    weight: Weight = None,
    external: External = None,
    media_urls: MediaUrls = None,
) -> None:
    """Change a project; what is not given stays."""
    from cli.up.effective import opened
    from jobs.security import projects

    with opened(options.data_dir) as db, db.write() as session:
        row = _find(session, project)
        name = name and _check_name(name)
        changes = _changes(name=name, weight=weight, allow_external=external, allow_media_urls=media_urls)
        projects.change(session, row, actor=_ACTOR, changes=changes)
        options.show(_describe(session, row), f"changed {row.id}")


@app.command()
def archive(options: HostOptions, project: ProjectName) -> None:
    """Archive a project for good: its keys open nothing after two seconds, and its jobs are cancelled.

    Schedules and sources are paused. Files, stores and trained models stay.
    """
    from cli.up.effective import opened
    from jobs.security import projects

    with opened(options.data_dir) as db, db.write() as session:
        row = _find(session, project)
        projects.archive(session, row, actor=_ACTOR)
        options.show(_describe(session, row), f"archived {row.id}")


def _find(session: "Session", name: str) -> "Project":
    """Return a project by its name, if it is not archived, or by its id. Raises: CliError."""
    from jobs.security import keys
    from jobs.security.tables import Project

    project = keys.find_project(session, name) or session.get(Project, name)
    if project is None:
        raise CliError(f"there is no project '{name}'; `nightmill projects list` shows them")
    return project


def _check_name(name: str) -> str:
    if not 0 < len(name.strip()) <= _MAX_NAME:
        raise CliError(f"a project's name has 1 to {_MAX_NAME} characters")
    return name.strip()


def _changes(**values: Any) -> "Changes":
    return cast("Changes", {name: value for name, value in values.items() if value is not None})


def _describe(session: "Session", project: "Project") -> dict[str, Any]:
    from jobs.security import keys

    return {
        "id": project.id,
        "name": project.name,
        "weight": project.weight,
        "allow_external": project.allow_external,
        "allow_media_urls": project.allow_media_urls,
        "live_keys": keys.live_keys(session, project.id),
        "created": project.created_at,
        "archived": project.archived_at,
    }


def _cells(row: dict[str, Any]) -> dict[str, object]:
    return {
        "id": row["id"],
        "name": row["name"],
        "weight": f"{row['weight']:g}",
        "external": "yes" if row["allow_external"] else "no",
        "media URLs": "yes" if row["allow_media_urls"] else "no",
        "live keys": row["live_keys"],
        "created": moment(row["created"]),
        "archived": moment(row["archived"]),
    }

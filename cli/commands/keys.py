"""`nightmill keys`: create, list and revoke API keys. Uses the database directly: the first key needs no key."""

from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import AsJson, DataDir
from cli.terminal import moment, show, show_entries

app = Group("Create, list and revoke API keys. Every key belongs to a project.")


@app.command()
def create(
    project: Annotated[str, typer.Option(help="The project of the key. A new project is created.")],
    external: Annotated[
        bool | None,
        typer.Option(
            "--allow-external/--no-external", help="Whether prompts of the project may go to servers outside."
        ),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print it. The key is shown only once."""
    from cli.up.effective import opened
    from jobs.security.keys import allow_external, create_key

    if not project.strip():
        raise CliError("a project needs a name")
    with opened(data_dir) as db, db.write() as session:
        key = create_key(session, project.strip())
        if external is not None:
            allow_external(session, project.strip(), allowed=external)
    show({"key": key, "project": project.strip()}, key, as_json=as_json)


@app.command("list")
def list_(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the id, project and dates of every key. The keys themselves are not stored."""
    from cli.up.effective import opened
    from jobs.security.keys import list_keys

    with opened(data_dir) as db, db.read() as session:
        rows = [
            {"id": key.id, "project": project.name, "created": key.created_at, "revoked": key.revoked_at}
            for key, project in list_keys(session)
        ]
    show_entries(rows, ("id", "project", "created", "revoked"), _row, as_json=as_json)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `nightmill keys list` shows it.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key. After five seconds no request with the key is accepted."""
    from cli.up.effective import opened
    from jobs.security.keys import revoke_key

    with opened(data_dir) as db, db.write() as session:
        revoked = revoke_key(session, key_id)
    if not revoked:
        raise CliError(f"there is no live key '{key_id}'; `nightmill keys list` shows them")
    show({"id": key_id, "revoked": True}, f"revoked {key_id}", as_json=as_json)


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    return key["id"], key["project"], moment(key["created"]), moment(key["revoked"])

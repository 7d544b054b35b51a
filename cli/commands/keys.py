"""`nightmill keys`: who may use the server. Works on the database directly, so that the first key needs no key."""

import time
from typing import Annotated

import typer

from cli.errors import Trouble
from cli.groups import Group
from cli.options import AsJson, DataDir
from cli.terminal import say, show_json, show_table

app = Group("Make, list and revoke API keys. Every key belongs to a project.")


@app.command()
def create(
    project: Annotated[str, typer.Option(help="The project the key belongs to; made if it is new.")],
    external: Annotated[
        bool | None,
        typer.Option(
            "--allow-external/--no-external", help="May this project's prompts go to servers outside? New ones may not."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, alone, on standard output. It is shown this once."""
    from cli.up.effective import opened
    from jobs.security.keys import allow_external, create_key

    if not project.strip():
        raise Trouble("a project needs a name")
    with opened(data_dir) as db, db.write() as session:
        key = create_key(session, project.strip())
        if external is not None:
            allow_external(session, project.strip(), allowed=external)
    say(key)


@app.command("list")
def list_(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every key's id, project and dates. The keys themselves are not kept."""
    from cli.up.effective import opened
    from jobs.security.keys import list_keys

    with opened(data_dir) as db, db.read() as session:
        rows = [
            {"id": key.id, "project": project.name, "created": key.created_at, "revoked": key.revoked_at}
            for key, project in list_keys(session)
        ]
    if as_json:
        show_json(rows)
        return
    shown = [(row["id"], row["project"], _day(row["created"]), _day(row["revoked"])) for row in rows]
    show_table(("id", "project", "created", "revoked"), shown)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `nightmill keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a key. Within five seconds no request with it is accepted."""
    from cli.up.effective import opened
    from jobs.security.keys import revoke_key

    with opened(data_dir) as db, db.write() as session:
        revoked = revoke_key(session, key_id)
    if not revoked:
        raise Trouble(f"there is no live key '{key_id}'; `nightmill keys list` shows them")
    say(f"revoked {key_id}")


def _day(moment: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if isinstance(moment, float) else "-"

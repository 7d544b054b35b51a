"""`nightmill keys`: create, list and revoke API keys.

The database is used directly, since the first key needs no key. With `--mine` the server is used, with a key of a
project, and so from another machine too.
"""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Create, list and revoke API keys. Every key belongs to a project, or is the operator's.")
OwnProject = Annotated[bool, typer.Option("--mine", help="Of the project of your own key, by its server.")]


@app.command()
def create(
    options: ServerOptions,
    project: Annotated[
        str, typer.Option(show_default=False, help="The project of the key. A new project is created.")
    ] = "",
    operator: Annotated[
        bool, typer.Option("--operator", help="A key that steers the deployment and opens no project.")
    ] = False,
    manage: Annotated[
        bool, typer.Option("--manage", help="A key that may create and revoke keys of its project too.")
    ] = False,
    external: Annotated[
        bool | None,
        typer.Option(
            "--allow-external/--no-external", help="Whether prompts of the project may go to servers outside."
        ),
    ] = None,
    media_urls: Annotated[
        bool | None,
        typer.Option(
            "--allow-media-urls/--no-media-urls",
            help="Whether workers fetch the pictures and files that the project's requests name by URL.",
        ),
    ] = None,
    own: OwnProject = False,
) -> None:
    """Create a key of a project or of the operator, and print it. The key is shown only once."""
    project = project.strip()
    if sum((bool(project), operator, own)) != 1:
        raise CliError("a key is of a project (--project NAME), of yours (--mine) or of the operator (--operator)")
    for name, permission in (("external", external), ("media-urls", media_urls)):
        if permission is not None and not project:
            raise CliError(f"--allow-{name} and --no-{name} need a --project")
    if manage and not project:
        raise CliError("--manage needs a --project: only the operator makes keys that manage keys")
    if own:
        key = options.server.post("/api_keys")["value"]
    else:
        key = _create_here(project, external, media_urls, operator, manage, options.data_dir)
    options.show({"key": key, "project": project or None, "operator": operator, "manages_keys": manage}, key)


def _create_here(
    project: str, external: bool | None, media_urls: bool | None, operator: bool, manage: bool, data_dir: Path | None
) -> str:
    from cli.up.effective import opened
    from jobs.security.keys import allow_external, allow_media_urls, create_admin_key, create_key

    with opened(data_dir) as db, db.write() as session:
        key = create_admin_key(session) if operator else create_key(session, project, manages=manage)
        if external is not None:
            allow_external(session, project, allowed=external)
        if media_urls is not None:
            allow_media_urls(session, project, allowed=media_urls)
        return key


@app.command("list")
def list_(options: ServerOptions, own: OwnProject = False, limit: Limit = 100) -> None:
    """List the id, project and dates of every key. The keys themselves are not stored."""
    if own:
        head = ("id", "key", "manages keys", "created by", "created", "revoked")
        options.show_entries(options.server.pages("/api_keys", {}, limit), head, _own_row)
        return
    from cli.up.effective import opened
    from jobs.security.keys import list_keys

    with opened(options.data_dir) as db, db.read() as session:
        rows = [
            {
                "id": key.id,
                "project": project,
                "project_id": key.project_id or None,
                "created": key.created_at,
                "revoked": key.revoked_at,
            }
            | {"operator": key.is_admin, "manages_keys": key.manages_keys, "created_by": key.created_by}
            for key, project in list_keys(session)
        ]
    head = ("id", "project", "manages keys", "created by", "created", "revoked")
    options.show_entries(rows, head, _row)


@app.command()
def revoke(
    options: ServerOptions,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `nightmill keys list` shows it.")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Revoke the keys too that it created, itself or through others.")
    ] = False,
    own: OwnProject = False,
) -> None:
    """Revoke a key. After five seconds no request with the key is accepted.

    Without --cascade the live keys that it created are named. With it the key may have been revoked before.
    """
    if own:
        path = f"/api_keys/{quote(key_id, safe='')}?cascade={str(cascade).lower()}"
        created = options.server.delete(path)["created_keys"]
    else:
        created = _revoke_here(key_id, cascade, options.data_dir)
    lines, names = [f"revoked {key_id}"], ", ".join(created)
    if created:
        outcome = "revoked the keys that it created" if cascade else "keys that it created stay live without --cascade"
        lines.append(f"{outcome}: {names}")
    options.show({"id": key_id, "revoked": True, "created_keys": created}, *lines)


def _revoke_here(key_id: str, cascade: bool, data_dir: Path | None) -> list[str]:
    from cli.up.effective import opened
    from jobs.security.keys import revoke_key

    with opened(data_dir) as db, db.write() as session:
        created = revoke_key(session, key_id, cascade=cascade)
    if created is None:
        raise CliError(f"there is no live key '{key_id}'; `nightmill keys list` shows them")
    return created


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    project = "(operator)" if key["operator"] else key["project"]
    return key["id"], project, *_rights(key), moment(key["created"]), moment(key["revoked"])


def _own_row(key: dict[str, Any]) -> tuple[object, ...]:
    return key["id"], key["redacted_value"], *_rights(key), moment(key["created_at"]), moment(key["revoked_at"])


def _rights(key: dict[str, Any]) -> tuple[object, ...]:
    return "yes" if key["manages_keys"] else "-", key["created_by"] or "(operator)"

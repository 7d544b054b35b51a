"""`nightmill keys`: create, list and revoke API keys.

The database is used directly, since the first key needs no key. With `--mine` the server is used, with a key of a
project, and so from another machine too.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Final, cast
from urllib.parse import quote

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import External, Limit, MediaUrls, ServerOptions
from cli.terminal import moment

app = Group("Create, list and revoke API keys. Every key belongs to a project, or is an admin key.")
OwnProject = Annotated[bool, typer.Option("--mine", help="Of the project of your own key, by its server.")]


@app.command()
def create(
    options: ServerOptions,
    project: Annotated[
        str, typer.Option(show_default=False, help="The project of the key. A new project is created.")
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="A key that administers the organization and opens no project.")
    ] = False,
    manage: Annotated[
        bool, typer.Option("--manage", help="A key that may create and revoke keys of its project too.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="PERMISSION", help="Permit this alone, such as api.files.read; may be repeated."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When the key ends: 12h or 30d from now, a year at most.")
    ] = None,
    external: External = None,
    media_urls: MediaUrls = None,
    own: OwnProject = False,
    operator: Annotated[bool, typer.Option("--operator", hidden=True, help="Refused: see --admin.")] = False,
) -> None:
    """Create a key of a project or an admin key, and print it. The key is shown only once."""
    if operator:
        raise CliError("an operator's key is an admin key now: use --admin in place of --operator")
    project = project.strip()
    if sum((bool(project), admin, own)) != 1:
        raise CliError("a key is of a project (--project NAME), of yours (--mine) or an admin key (--admin)")
    for option, permission in (("external", external), ("media-urls", media_urls)):
        if permission is not None and not project:
            raise CliError(f"--allow-{option} and --no-{option} need a --project")
    if manage and not project:
        raise CliError("--manage needs a --project: only the command makes keys that manage keys")
    seconds = _seconds(expires) if expires is not None else None
    if own:
        body = {"name": name, "scopes": scope, "expires_in_seconds": seconds}
        key = options.server.post("/api_keys", {field: value for field, value in body.items() if value})["value"]
    else:
        from cli.up.effective import opened
        from jobs.clock import now
        from jobs.security import keys, projects

        rights: keys.KeyOptions = {"name": name, "scopes": scope or (), "manages": manage}
        rights["expires_at"] = now() + seconds if seconds else None
        allowed = {"allow_external": external, "allow_media_urls": media_urls}
        with opened(options.data_dir) as db, db.write() as session:
            key = keys.create_admin_key(session, **rights) if admin else keys.create_key(session, project, **rights)
            if changes := {field: value for field, value in allowed.items() if value is not None}:
                row = keys.ensure_project(session, project)
                projects.change(session, row, actor="operator", changes=cast("projects.Changes", changes))
    options.show({"key": key, "project": project or None, "admin": admin, "manages_keys": manage}, key)


_UNITS: Final = {"h": 3600, "d": 86_400}
_MAX_DAYS: Final = 365


def _seconds(text: str) -> int:
    """Return the seconds of a lifetime. Raises: CliError."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_DAYS * _UNITS["d"]:
        raise CliError(f"--expires takes hours or days, such as 12h or 30d, and at most {_MAX_DAYS}d, not '{text}'")
    return seconds


@app.command("list")
def list_(options: ServerOptions, own: OwnProject = False, limit: Limit = 100) -> None:
    """List the id, project and dates of every key. The keys themselves are not stored."""
    if own:
        head = ("id", "key", *_HEAD)
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
                "name": key.name,
                "scopes": key.scopes or [],
                "created": key.created_at,
                "expires": key.expires_at,
                "last_used": key.last_used_at,
                "revoked": key.revoked_at,
                "admin": key.is_admin,
                "manages_keys": key.manages_keys,
                "created_by": key.created_by,
            }
            for key, project in list_keys(session)
        ]
    head = ("id", "project", *_HEAD)
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
    """Revoke a key. After two seconds no request with the key is accepted, and its jobs are cancelled.

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


_HEAD: Final = ("name", "scopes", "manages keys", "created by", "created", "expires", "last used", "revoked")


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    project = "(admin)" if key["admin"] else key["project"]
    times = (key["created"], key["expires"], key["last_used"], key["revoked"])
    return key["id"], project, *_rights(key), *map(moment, times)


def _own_row(key: dict[str, Any]) -> tuple[object, ...]:
    times = (key["created_at"], key["expires_at"], key["last_used_at"], key["revoked_at"])
    return key["id"], key["redacted_value"], *_rights(key), *map(moment, times)


def _rights(key: dict[str, Any]) -> tuple[object, ...]:
    manages = "yes" if key["manages_keys"] else "-"
    return key["name"] or "-", " ".join(key["scopes"]) or "all", manages, key["created_by"] or "(operator)"

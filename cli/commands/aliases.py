"""`nightmill aliases`: list, set, show and delete a project's own names of models."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("List, set, show and delete your project's own names of models.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that requests give as `model`.")]

_HEAD = ("alias", "model", "since")
_MAX = 1000  # of a project


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the aliases of your project, the newest first, with the model of each."""
    options.show_entries(options.server.pages("/aliases", {}, limit), _HEAD, _row)


@app.command("set")
def set_(
    options: ServerOptions,
    name: Name,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that answers the name.")],
) -> None:
    """Let a name stand for a model. An alias of that name is changed."""
    server = options.server
    if name in {alias["id"] for alias in server.pages("/aliases", {}, _MAX)}:
        alias = server.post(_path(name), {"model": model})
    else:
        alias = server.post("/aliases", {"id": name, "model": model})
    options.show(alias, f"{alias['id']} stands for {alias['model']}")


@app.command()
def show(options: ServerOptions, name: Name) -> None:
    """Show the model for which an alias stands."""
    alias = options.server.get(_path(name))
    options.show(alias, f"{alias['id']} stands for {alias['model']} since {moment(alias['updated_at'])}")


@app.command()
def delete(options: ServerOptions, name: Name) -> None:
    """Delete an alias. Its model stays."""
    options.show(options.server.delete(_path(name)), f"{name} deleted")


def _path(name: str) -> str:
    return f"/aliases/{quote(name, safe='', errors='replace')}"


def _row(alias: dict[str, Any]) -> tuple[object, ...]:
    return alias["id"], alias["model"], moment(alias["updated_at"])

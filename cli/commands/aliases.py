"""`nightmill aliases`: a project's own names of models, the shares of their models, and their moves."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client.submission import parse_time
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Name models for your project, share requests among them, and follow their moves.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that requests give as `model`.")]
Reason = Annotated[str | None, typer.Option(help="Why it changes: kept with the move.")]

_MAX = 1000  # of a project


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the aliases of your project, the newest first, and those of the models file."""
    head = ("alias", "models", "since", "source")
    options.show_entries(options.server.pages("/aliases", {}, limit), head, _row)


@app.command("set")
def set_(
    options: ServerOptions,
    name: Name,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model that answers, of several the incumbent: it has the rest.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=PERCENT", help="Another model and its share of the requests; may be repeated."),
    ] = None,
    sticky: Annotated[bool, typer.Option("--sticky", help="Give each user, or else each key, the same model.")] = False,
    fallback: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A model for when the other fails, or has no live worker; may be repeated."),
    ] = None,
    fallback_after: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="The time in which an answer has to begin, or a fallback is asked."),
    ] = None,
    rollback: Annotated[
        bool, typer.Option(help="Drop targets that fail or are slow, beside the incumbent, by themselves.")
    ] = True,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model that is asked the same, after the answer; nobody sees its own."),
    ] = None,
    shadow_share: Annotated[int, typer.Option(metavar="PERCENT", help="The share of requests for the shadow.")] = 100,
    shadow_in_flight: Annotated[
        int, typer.Option(help="Requests of the shadow at once; beyond, they are dropped.")
    ] = 4,
    shadow_compare: Annotated[
        str | None, typer.Option(metavar="exact_match|length|grader", help="How both answers are compared.")
    ] = None,
    reason: Reason = None,
) -> None:
    """Let a name stand for a model, or share its requests among several, in place of what an alias of that name had."""
    fields = {"sticky": sticky, "fallbacks": fallback or [], "fallback_after": fallback_after, "rollback": rollback}
    options_of_shadow = {"share": shadow_share, "max_in_flight": shadow_in_flight, "compare": shadow_compare}
    shadowed = shadow and {"model": shadow, **options_of_shadow}
    body = {"targets": _targets(model, target or []), "shadow": shadowed, "reason": reason, **fields}
    server = options.server
    own = {alias["id"] for alias in server.pages("/aliases", {}, _MAX) if alias["source"] == "project"}
    alias = server.post(_path(name), body) if name in own else server.post("/aliases", {"id": name, **body})
    options.show(alias, f"{alias['id']} stands for {_models(alias)}")


@app.command()
def show(
    options: ServerOptions,
    name: Name,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Show the alias as it stood then, such as 2026-03-31T18:00.")
    ] = None,
) -> None:
    """Show the models for which an alias stands, and the requests of its shadow in the last day."""
    alias = options.server.get(_path(name), {} if at is None else {"at": parse_time(at)})
    fallbacks = f", else for {', '.join(alias['fallbacks'])}" if alias["fallbacks"] else ""
    fallbacks += f" after {seconds} s" if (seconds := alias.get("fallback_after")) else ""
    sticky = ", the same for each user" if alias["sticky"] else ""
    models = f"{alias['id']} stands for {_models(alias)}{sticky}{fallbacks}"
    options.show(alias, f"{models} since {moment(alias['updated_at'])}", *_shadow_lines(alias))


@app.command()
def moves(options: ServerOptions, name: Name, limit: Limit = 100) -> None:
    """List what an alias stood for, the newest move first, who changed it, and why."""
    head = ("move", "time", "action", "models", "by", "reason")
    options.show_entries(options.server.pages("/alias_moves", {"alias": name}, limit), head, _move_row)


@app.command()
def revert(options: ServerOptions, name: Name, reason: Reason = None) -> None:
    """Let an alias stand again for what it stood for before its last move."""
    alias = options.server.post(_path(name), {"revert": True, "reason": reason})
    options.show(alias, f"{alias['id']} stands for {_models(alias)}")


@app.command()
def delete(options: ServerOptions, name: Name) -> None:
    """Delete an alias. Its models and its moves stay."""
    options.show(options.server.delete(_path(name)), f"{name} deleted")


def _targets(model: str, others: list[str]) -> list[dict[str, Any]]:
    """Return the targets of an alias, of which the first has what the others leave. Raises CliError."""
    targets: list[dict[str, Any]] = []
    for text in others:
        name, _, percent = text.rpartition("=")
        if not name or not percent.isascii() or not percent.isdigit():
            raise CliError(f"{text}: give --target as MODEL=PERCENT, such as smollm2-135m-instruct=20")
        targets.append({"model": name, "weight": int(percent)})
    left = 100 - sum(target["weight"] for target in targets)
    if left < 1:
        raise CliError(f"the targets leave nothing of 100 % for {model}")
    return [{"model": model, "weight": left}, *targets]


def _shadow_lines(alias: dict[str, Any]) -> list[str]:
    """Return a line with the shadow of an alias and what became of its requests; none where it has no shadow."""
    shadow, counts = alias["shadow"], alias["shadow_counts"]
    if shadow is None:
        return []
    line = f"shadow {shadow['model']} {shadow['share']} %"
    if counts is None:
        return [line]
    line += f": {counts['sent']} of {counts['requests']} requests sent, {counts['dropped']} dropped"
    line += f", {counts['failed']} failed"
    if counts["equal"] is not None:
        line += f", {counts['equal']} of {counts['compared']} answers the same"
    if counts["length_ratio"] is not None:
        line += f", {counts['length_ratio']:.2f} times as long"
    return [line]


def _path(name: str) -> str:
    return f"/aliases/{quote(name, safe='', errors='replace')}"


def _models(routing: dict[str, Any]) -> str:
    """Return the targets of an alias as text, with their percentages where there are several."""
    targets = routing["targets"]
    if len(targets) == 1:
        return str(targets[0]["model"])
    return ", ".join(f"{target['model']} {target['weight']} %" for target in targets)


def _row(alias: dict[str, Any]) -> tuple[object, ...]:
    return alias["id"], _models(alias), moment(alias["updated_at"]), alias["source"]


def _move_row(move: dict[str, Any]) -> tuple[object, ...]:
    models = "-" if move["routing"] is None else _models(move["routing"])
    return move["id"], moment(move["created_at"]), move["action"], models, move["actor"], move["reason"] or ""

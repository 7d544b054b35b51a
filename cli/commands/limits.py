"""`nightmill limits`: show and set what a project may use, in the database directly."""

from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions
from cli.terminal import say, show_json, show_table

app = Group("Show and set what a project may use: bytes, jobs, tokens and requests.")
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="The name of the project.")]
_DEFAULT, _NONE = "default", "none"


@app.command()
def show(options: HostOptions, project: ProjectName) -> None:
    """Show the limits of a project: its own, and those that hold for all projects."""
    limits, rates = _read(options, project)
    if options.as_json:
        show_json({"project": project, "limits": limits, "models": rates})
        return
    show_table(
        ("limit", "value", "set for"),
        [(limit["name"], _describe(limit["value"]), "the project" if limit["is_own"] else "all") for limit in limits],
    )
    if rates:
        names = [name for name in rates[0] if name != "model"]
        head = ("model", *(name.replace("_", " ") for name in names))
        show_table(head, [(row["model"], *(_describe(row[name]) for name in names)) for row in rates])


@app.command("set")
def set_(
    options: HostOptions,
    project: ProjectName,
    values: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE …", help="A number, `none`, or `default`: as for all projects."),
    ],
    model: Annotated[
        str,
        typer.Option(show_default=False, help="Set limits of requests and tokens for this model, or that of an alias."),
    ] = "",
) -> None:
    """Set limits of a project. They hold within two seconds."""
    changes = dict(map(_parse, values))
    subject = _write(options, project, changes, model)
    say(f"{subject}: " + ", ".join(f"{name}={value}" for name, value in changes.items()))


def _read(options: HostOptions, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from sqlalchemy import select

    from cli.up.effective import effective, opened
    from jobs.usage import rate_limits
    from jobs.usage.project_limits import SETTINGS, limit_of
    from jobs.usage.tables import RateLimit

    config = effective(data_dir=options.data_dir)
    with opened(options.data_dir) as db, db.read() as session:
        project = _project(session, name)
        own = project.limits or {}
        limits = [
            {"name": key, "value": limit_of(session, config, project.id, key) or None, "is_own": key in own}
            for key in SETTINGS
        ]
        rows = session.scalars(select(RateLimit).where(RateLimit.project_id == project.id).order_by(RateLimit.model))
        rates = [{"model": row.model, **{key: getattr(row, key) for key in rate_limits.NAMES}} for row in rows]
    return limits, rates


def _write(options: HostOptions, name: str, changes: dict[str, str], model: str) -> str:
    """Set limits; return the project that has them, with the model where they are of one."""
    from cli.up.effective import opened, running
    from jobs.fleet.models_file import Registry
    from jobs.usage import project_limits

    registry = Registry.load(running(options.data_dir)) if model else None
    with opened(options.data_dir) as db, db.write() as session:
        project = _project(session, name)
        session.refresh(project, with_for_update=True)
        if registry is not None:
            target = _find_model(session, registry, project.id, model)
            _set_rates(session, project.id, target, changes)
            return f"{name}, {target}"
        limits = {key: _limit(key, value) for key, value in changes.items()}
        project_limits.set_limits(session, project, limits, actor="operator")
    return name


def _find_model(session: Any, registry: Any, project_id: str, name: str) -> str:
    """Return the model whose limits hold for a name: that of an alias, and the base of a tuned model."""
    from jobs.fleet import routing

    target = routing.target_of(name, routing.live_aliases(session, registry))
    models = routing.names_of(session, registry, None, project_id)
    if target not in models:
        raise CliError(f"the project may use no model '{name}'. {routing.describe_models(models)}")
    return target


def _set_rates(session: Any, project_id: str, model: str, changes: dict[str, str]) -> None:
    from jobs.ledger import audit
    from jobs.usage import rate_limits

    if unknown := changes.keys() - set(rate_limits.NAMES):
        raise CliError(f"there is no limit '{min(unknown)}' of a model; they are: {', '.join(rate_limits.NAMES)}")
    limits = {key: None if value in (_NONE, _DEFAULT) else _number(key, value) for key, value in changes.items()}
    rate_limits.set_limits(session, project_id, model, limits)
    audit.record(
        session, actor="operator", action="rate_limit.update", target=f"rl-{model}", project_id=project_id,
        details=rate_limits.public_fields(limits),
    )  # fmt: skip


def _project(session: Any, name: str) -> Any:
    from jobs.security.keys import find_project

    project = find_project(session, name)
    if project is None:
        raise CliError(f"there is no project '{name}'")
    return project


def _parse(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise CliError(f"'{text}' is not NAME=VALUE")
    return name.replace("-", "_"), value


def _limit(name: str, value: str) -> int | None:
    """Return the value of a limit; None for that of all projects. 0 stands for no limit in the settings."""
    if value == _DEFAULT:
        return None
    return 0 if value == _NONE else _number(name, value)


def _number(name: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 53:
        raise CliError(f"'{value}' is no value of {name}")
    return number


def _describe(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"

"""`nightmill budgets`: what projects spend this month, their spend limits and alerts. The database is used directly."""

from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions
from cli.terminal import say, show_json, show_table

app = Group("Show what projects spend this month, and set their spend limits and alerts.")
_ALL = "organization"
Owner = Annotated[
    str, typer.Argument(metavar="PROJECT", help="The name of a project, or `organization` for all projects together.")
]


@app.command()
def show(options: HostOptions) -> None:
    """Show what each project has spent and reserved this month (UTC), and its limit, in US dollars.

    Models without prices of input and output are named: what they do costs nothing, and counts towards no limit.
    """
    from cli.up.effective import effective, opened
    from jobs.fleet.models_file import Registry
    from jobs.security.keys import project_names
    from jobs.usage.budgets import ORGANIZATION, budget_of, models_without_price

    registry = Registry.load(effective(data_dir=options.data_dir))
    with opened(options.data_dir) as db, db.read() as session:
        names = {ORGANIZATION: _ALL, **project_names(session)}
        rows = [(name, budget_of(session, owner, registry.price_source)) for owner, name in names.items()]
        free = models_without_price(session, registry.models.values(), registry.price_source)
    if options.as_json:
        show_json([_as_dict(name, budget) for name, budget in rows])
        return
    head = ("project", "spent", "reserved", "limit", "")
    show_table(head, [_row(name, budget) for name, budget in rows])
    if free:
        say(f"without a price, and so without a cost: {', '.join(free)}")


@app.command("set")
def set_(
    options: HostOptions,
    owner: Owner,
    cents: Annotated[int | None, typer.Option(min=1, help="The most that a month may cost, in US cents.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Remove the limit.")] = False,
) -> None:
    """Set or remove a spend limit. At the limit clients get 429, and jobs wait until it is raised or the month ends."""
    from cli.up.effective import opened
    from jobs.usage.budgets import change_limit

    if (cents is None) is not none:
        raise CliError("name the limit with --cents N, or remove it with --none")
    with opened(options.data_dir) as db, db.write() as session:
        change_limit(session, _id_of(session, owner), cents, actor="operator")
    text = f"{owner}: no spend limit" if cents is None else f"{owner}: at most ${cents / 100:,.2f} a month"
    options.show({"project": owner, "limit_cents": cents}, text)


@app.command()
def alert(
    options: HostOptions,
    owner: Owner,
    cents: Annotated[int, typer.Option(min=0, help="The cost of a month at which to tell, in US cents.")],
    recipients: Annotated[
        list[str], typer.Option("--email", help="An address to note with the alert; may be repeated. No mail is sent.")
    ],
) -> None:
    """Record an event for webhooks, `spend.alert.reached`, once a month when the cost reaches a threshold."""
    from cli.up.effective import opened
    from jobs.ledger import audit
    from jobs.usage import alerts

    with opened(options.data_dir) as db, db.write() as session:
        project_id = _id_of(session, owner)
        row = alerts.create(session, project_id, cents=cents, recipients=recipients)
        details = {"threshold_amount": cents}
        audit.record(
            session,
            actor="operator",
            action="spend_alert.create",
            target=row.id,
            project_id=project_id or None,
            details=details,
        )
        alert_id = row.id
    shown = {"id": alert_id, "project": owner, "threshold_cents": cents}
    options.show(shown, f"{alert_id}: ${cents / 100:,.2f} a month")


def _id_of(session: Any, owner: str) -> str:
    """Return the id of a project of this name; empty for the organization. Raises CliError."""
    from jobs.security.keys import find_project
    from jobs.usage.budgets import ORGANIZATION

    if owner == _ALL:
        return ORGANIZATION
    project = find_project(session, owner)
    if project is None:
        raise CliError(f"there is no project '{owner}'; `nightmill keys create --project` makes one")
    return str(project.id)


def _as_dict(name: str, budget: Any) -> dict[str, Any]:
    dollars = {column: _dollars(getattr(budget, column)) for column in ("spent", "reserved", "limit")}
    return {"project": name, **dollars, "exhausted": budget.is_exhausted}


def _row(name: str, budget: Any) -> tuple[object, ...]:
    amounts = [_dollars(getattr(budget, column)) for column in ("spent", "reserved", "limit")]
    shown = ["-" if amount is None else f"{amount:,.2f}" for amount in amounts]
    return name, *shown, "reached" if budget.is_exhausted else ""


def _dollars(micros: int | None) -> float | None:
    return None if micros is None else round(micros / 1_000_000, 6)

"""`nightmill prices`: what a million tokens of a model cost, each price since a day."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions

app = Group("List and set the prices of models, in US dollars for a million tokens.")
_MAX_PRICE = 1_000_000.0


@app.command("list")
def list_(options: HostOptions) -> None:
    """List all prices, the newest of each model last, and those of the models file (`cost_per_million_tokens`)."""
    from sqlalchemy import select

    from cli.up.effective import opened, running
    from jobs.fleet.models_file import Registry
    from jobs.usage.tables import Price

    registry = Registry.load(running(options.data_dir))
    prices = [
        {"model": model.name, "kind": "all", "usd_per_million": model.cost_per_million_tokens, "since": None}
        for model in registry.models.values()
        if model.cost_per_million_tokens is not None
    ]
    with opened(options.data_dir) as db, db.read() as session:
        rows = session.scalars(select(Price).order_by(Price.model, Price.kind, Price.since)).all()
    prices += [
        {"model": row.model, "kind": row.kind, "usd_per_million": row.usd_per_million, "since": row.since}
        for row in rows
    ]
    head = ("model", "tokens", "US dollars for a million", "since")
    options.show_entries(
        prices, head, lambda row: (row["model"], row["kind"], row["usd_per_million"], _date(row["since"]))
    )


@app.command("set")
def set_(
    options: HostOptions,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name in the models file, or an alias.")],
    given: Annotated[float | None, typer.Option("--input", min=0, max=_MAX_PRICE, help="Of input tokens.")] = None,
    cached: Annotated[
        float | None, typer.Option(min=0, max=_MAX_PRICE, help="Of cached input tokens; by default as others.")
    ] = None,
    output: Annotated[
        float | None, typer.Option(min=0, max=_MAX_PRICE, help="Of output tokens; 0 for embeddings.")
    ] = None,
    training: Annotated[float | None, typer.Option(min=0, max=_MAX_PRICE, help="Of trained tokens.")] = None,
    since: Annotated[str, typer.Option(metavar="DATE", help="The first day (UTC); by default from now on.")] = "",
) -> None:
    """Set prices of a model. What was priced already keeps its cost; usage without a cost gets one."""
    from cli.up.effective import opened, running
    from jobs.clock import now
    from jobs.fleet.models_file import Registry
    from jobs.usage import minutes
    from jobs.usage.prices import set_prices

    options_by_kind = {"input": given, "cached": cached, "output": output, "training": training}
    prices = {kind: price for kind, price in options_by_kind.items() if price is not None}
    if not prices:
        raise CliError("name at least one price: --input, --cached, --output or --training")
    start = _time(since) if since else int(now())
    registry = Registry.load(running(options.data_dir))
    known = registry.resolve(model) or registry.base(model)
    name = known.name if known else model
    with opened(options.data_dir) as db:
        with db.write() as session:
            set_prices(session, name, prices, start, actor="operator")
        priced, after = 0, minutes.FIRST
        while after is not None:
            with db.write() as session:
                count, after = minutes.price_rows(session, registry.price_source, name, start, after)
            priced += count
    result = {"model": name, "since": start, **prices, "priced_rows": priced}
    options.show(result, f"the prices of {name} hold since {_date(start)}; {priced} rows without a cost have one now")


def _time(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise CliError(f"'{text}' is no day; one looks like 2026-11-30") from None


def _date(at: int | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")

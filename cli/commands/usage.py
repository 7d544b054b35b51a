"""`nightmill usage`: what was used and what it costs, whether that is exact, and how many bytes each project stores."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions
from cli.terminal import say, show_json, show_table

if TYPE_CHECKING:
    from jobs.usage.reports import UsageCell, UsageTotal

app = Group("Report usage and costs, check that they are exact, and show the bytes that projects store.")
_MB = 1 << 20
_MICROS: Final = 1_000_000
#: What a report may be grouped by, and its dimension in `jobs.usage.reports`.
_DIMENSIONS: Final = {
    "project": "project_id", "key": "key_id", "user": "user_id", "model": "model", "endpoint": "endpoint",
    "batch": "batch", "tier": "tier",
}  # fmt: skip
_SUMS: Final = ("requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "device_seconds")


@app.command("bytes")
def show_bytes(options: HostOptions) -> None:
    """Show how many bytes each project stores, by kind, and its limit (`nightmill limits show`)."""
    import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
    from cli.up.effective import effective, opened
    from jobs.security.keys import project_names
    from jobs.usage.project_limits import limit_of
    from jobs.usage.stored_bytes import bytes_by_project, sums

    config = effective(data_dir=options.data_dir)
    with opened(options.data_dir) as db, db.read() as session:
        stored = bytes_by_project(session)
        names = project_names(session)
        limits = {project_id: limit_of(session, config, project_id, "max_bytes") for project_id in names}
    none = dict.fromkeys(sums(), 0)
    by_name = sorted(names.items(), key=lambda item: item[1])
    rows = [(name, stored.get(project_id, none), limits[project_id]) for project_id, name in by_name]
    if options.as_json:
        show_json([{"project": name, **sizes, "limit": limit or None} for name, sizes, limit in rows])
        return
    head = ["project", *(name.replace("_", " ") for name in none), "all, MB", "limit, MB"]
    show_table(
        head, [[name, *map(_megabytes, [*sizes.values(), sum(sizes.values()), limit])] for name, sizes, limit in rows]
    )


@app.command()
def report(
    options: HostOptions,
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="A month in UTC; by default this one.")] = "",
    by: Annotated[
        str, typer.Option(help=f"What each row is about, separated by commas: {', '.join(_DIMENSIONS)}.")
    ] = "project,key,model",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    focus: Annotated[
        bool, typer.Option("--focus", help="Print the priced usage of each day as CSV of FOCUS 1.2.")
    ] = False,
) -> None:
    """Report the usage and the cost of a month. A cost is empty where the model had no price."""
    names = [name.strip() for name in by.split(",")]
    if unknown := [name for name in names if name not in _DIMENSIONS]:
        raise CliError(f"'{unknown[0]}' is none of {', '.join(_DIMENSIONS)}")
    if focus:
        _print_focus(options, *_bounds(month))
        return
    cells, projects = _read(options, *_bounds(month), 0, tuple(_DIMENSIONS[name] for name in names))
    rows = [(*_row_names(names, cell, projects), *_sums(total)) for cell, total in cells]
    head = (*names, *_SUMS, "cost_usd")
    if options.as_json:
        show_json([dict(zip(head, row, strict=True)) for row in rows])
    elif as_csv:
        _print_csv(head, rows)
    else:
        show_table(
            [name.replace("_", " ") for name in head],
            [["-" if value is None else value for value in row] for row in rows],
        )


@app.command()
def verify(
    options: HostOptions,
    since: Annotated[
        str, typer.Option(metavar="DATE", help="Compare from this day on (UTC); by default all that can be compared.")
    ] = "",
) -> None:
    """Compare the usage of batches with the ledger, to the token. Exit code 1 if they differ.

    The ledger is compared as far back as it has the segments of jobs (NIGHTMILL_RETENTION_SECONDS), and not further
    than the first usage.
    """
    import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
    from cli.up.effective import effective, opened
    from jobs.clock import now
    from jobs.usage.verification import differences, first_minute

    kept = int(now()) - effective(data_dir=options.data_dir).retention_seconds
    with opened(options.data_dir) as db, db.snapshot() as session:
        start = _day(since) if since else max(first_minute(session) or 0, int(kept) + 60)
        differing = list(differences(session, start))
    rows = [
        {**difference.group._asdict(), "ledger": difference.ledger, "usage": difference.usage}
        for difference in differing
    ]
    if options.as_json:
        show_json(rows)
    elif rows:
        head = ("day", "project", "key", "endpoint", "ledger: input, cached, output, reasoning", "usage: the same")
        show_table(head, [(_date(row["day"]), *list(row.values())[1:]) for row in rows])
    if rows:
        raise CliError(f"the usage of batches differs from the ledger in {len(rows)} places")
    if not options.as_json:
        say("the usage of batches is that of the ledger, to the token")


#: The mandatory columns of FOCUS 1.2, some of the others, and our own.
_FOCUS: Final = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ServiceCategory", "ServiceName", "ChargeFrequency", "ConsumedQuantity", "ConsumedUnit", "ServiceSubcategory",
    "SkuId", "SubAccountId", "SubAccountName", "x_ApiKeyId", "x_InputTokens", "x_OutputTokens",
)  # fmt: skip
_ISSUER: Final = "Nightmill"


def _print_focus(options: HostOptions, start: int, end: int) -> None:
    """Print a row for each day, project, key and model. FOCUS has no null costs: what has no price is left out."""
    cells, projects = _read(options, start, end, 86_400, ("project_id", "key_id", "model"))
    priced = [(cell, total) for cell, total in cells if total.cost is not None and cell.values[2] is not None]
    period = {"BillingPeriodStart": _time(start), "BillingPeriodEnd": _time(end)}
    rows = (period | _focus_row(cell, total, projects) for cell, total in priced)
    _print_csv(_FOCUS, ([row.get(name, "") for name in _FOCUS] for row in rows))
    unpriced = sum(cell.values[2] is not None for cell, _ in cells) - len(priced)
    if unpriced:
        say(f"{unpriced} rows are left out: their models have no price (`nightmill prices set`)", err=True)


def _focus_row(cell: "UsageCell", total: "UsageTotal", projects: dict[str, str]) -> dict[str, Any]:
    project_id, key_id, model = cell.values
    cost, tokens = (total.cost or 0) / _MICROS, total.amounts.input_tokens + total.amounts.output_tokens
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), f"{cost:.6f}"),
        **dict.fromkeys(("InvoiceIssuerName", "ProviderName", "PublisherName"), _ISSUER),
        **dict.fromkeys(("PricingQuantity", "ConsumedQuantity"), f"{tokens:.1f}"),
        **dict.fromkeys(("PricingUnit", "ConsumedUnit"), "Tokens"),
        "BillingAccountId": "nightmill",
        "BillingAccountName": _ISSUER,
        "BillingCurrency": "USD",
        "ChargeCategory": "Usage",
        "ChargeDescription": f"Tokens of {model}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(cell.bucket),
        "ChargePeriodEnd": _time(cell.bucket + 86_400),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": "Model inference and training",
        "SkuId": model,
        "SubAccountId": project_id,
        "SubAccountName": projects.get(project_id, project_id),
        "x_ApiKeyId": key_id or "",
        "x_InputTokens": total.amounts.input_tokens,
        "x_OutputTokens": total.amounts.output_tokens,
    }


def _read(
    options: HostOptions, start: int, end: int, step: int, group_by: tuple[str, ...]
) -> tuple[list[tuple["UsageCell", "UsageTotal"]], dict[str, str]]:
    """Return the sums of a query in their order, and the names of projects."""
    from cli.up.effective import opened, running
    from jobs.fleet.models_file import Registry
    from jobs.security.keys import project_names
    from jobs.usage.reports import UsageQuery, report

    registry = Registry.load(running(options.data_dir))
    with opened(options.data_dir) as db, db.snapshot() as session:
        answer = report(session, UsageQuery(start, end, step, group_by=group_by), registry.price_source)
        names = project_names(session)
    if answer.end < end:
        raise CliError("the month has too many rows: report it by less (--by)")
    cells = sorted(answer.cells.items(), key=lambda pair: (pair[0].bucket, [str(value) for value in pair[0].values]))
    return [(cell, total) for cell, total in cells if any(total.amounts)], names


def _row_names(names: Sequence[str], cell: "UsageCell", projects: dict[str, str]) -> Iterator[object]:
    for name, value in zip(names, cell.values, strict=True):
        yield projects.get(value, value) if name == "project" else value


def _sums(total: "UsageTotal") -> Iterator[object]:
    yield from (round(value, 3) for value in total.amounts)
    yield None if total.cost is None else round(total.cost / _MICROS, 6)


def _print_csv(head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)


def _bounds(month: str) -> tuple[int, int]:
    """Return the beginning and the end of a month, in unix seconds. Raises CliError."""
    try:
        begin = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC) if month else _this_month()
    except ValueError:
        raise CliError(f"'{month}' is no month; one looks like 2026-11") from None
    following = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    return int(begin.timestamp()), int(following.timestamp())


def _this_month() -> datetime:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _day(text: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise CliError(f"'{text}' is no day; one looks like 2026-11-30") from None


def _date(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _megabytes(size: int) -> str:
    """Return `size` in megabytes; `-` for none."""
    return f"{size / _MB:.1f}" if size else "-"

"""`nightmill online-evals`: grade a share of the answers again and again, and follow how many pass."""

from typing import Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Grade a share of the answers that users get, again and again, and tell when they become worse.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, as `nightmill online-evals list` shows it.")]
_SOURCES = ("stored_completions", "responses", "shadow")


@app.command()
def create(
    options: ServerOptions,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    evaluation: Annotated[str, typer.Argument(metavar="EVAL", help="The eval that grades the answers.")],
    source: Annotated[str, typer.Option(metavar="|".join(_SOURCES), help="The answers that are graded.")] = "responses",
    alias: Annotated[
        str | None, typer.Option(help="With --source shadow: the alias, whose shadow has --shadow-compare grader.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only answers of this model, or to requests for this name.")] = None,
    share: Annotated[float, typer.Option(metavar="PERCENT", help="The share of the answers that is graded.")] = 10,
    every: Annotated[str, typer.Option(metavar="CRON", help="The times of the rounds.")] = "0 * * * *",
    timezone: Annotated[str, typer.Option(help="The time zone of --every.")] = "UTC",
    per_day: Annotated[int, typer.Option(help="Answers that are graded in 24 hours, at most.")] = 1000,
    minimum: Annotated[
        float | None, typer.Option(help="Tell when the pass rate, from 0 to 1, is less; with --score the mean score.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="The criterion of --minimum. Else an answer passes all.")
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Compare the mean score of the criterion.")] = False,
    window: Annotated[int, typer.Option(help="The last graded answers that are compared with --minimum.")] = 100,
) -> None:
    """Grade answers from now on, and print the id."""
    if source not in _SOURCES:
        raise CliError(f"{source}: give --source as {' or '.join(_SOURCES)}")
    if (source == "shadow") != (alias is not None):
        raise CliError("--source shadow and --alias belong together")
    body: dict[str, Any] = {
        "name": name,
        "eval_id": evaluation,
        "source": {"type": source, "alias": alias} if alias is not None else {"type": source, "model": model},
        "share": share,
        "cron": every,
        "timezone": timezone,
        "max_answers_per_day": per_day,
    }
    if minimum is not None:
        measure = "mean_score" if score else "pass_rate"
        body["threshold"] = {"measure": measure, "criterion": criterion, "minimum": minimum, "window": window}
    made = options.server.post("/online_evaluations", body)
    options.show(made, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 100) -> None:
    """List the online evaluations of your project, the newest first."""
    head = ("online evaluation", "name", "eval", "share", "status", "value", "alert", "next")
    options.show_entries(options.server.pages("/online_evaluations", {}, limit), head, _row)


@app.command()
def show(options: ServerOptions, online_evaluation: Id) -> None:
    """Show an online evaluation, with the value that is compared and why there was no round."""
    shown = options.server.get(f"/online_evaluations/{online_evaluation}")
    threshold = shown["threshold"]
    lines = [f"{shown['name']}: {shown['share']:g} % of {shown['source']['type']} by {shown['eval_id']}"]
    lines.append(f"  {shown['status']}, {shown['cron']} {shown['timezone']}, next {moment(shown['next_round_at'])}")
    if threshold is not None:
        of = f" of {threshold['criterion']}" if threshold["criterion"] else ""
        at_least = f"at least {threshold['minimum']:g} over {threshold['window']}"
        lines.append(f"  {threshold['measure']}{of} {_number(shown['value'])}, {at_least}{_alert(shown)}")
    if shown["last_error"]:
        lines.append(f"  {shown['last_error']}")
    options.show(shown, *lines)


@app.command()
def rounds(options: ServerOptions, online_evaluation: Id, limit: Limit = 100) -> None:
    """List the rounds of an online evaluation, the newest first: how the pass rate went on."""
    entries = options.server.pages(f"/online_evaluations/{online_evaluation}/rounds", {}, limit)
    head = ("round", "until", "status", "answers", "pass rate", "95 %", "errored", "error")
    options.show_entries(entries, head, _round_row)


@app.command()
def pause(options: ServerOptions, online_evaluation: Id) -> None:
    """Begin no rounds until the online evaluation is resumed."""
    _update_pause(options, online_evaluation, paused=True)


@app.command()
def resume(options: ServerOptions, online_evaluation: Id) -> None:
    """Begin rounds again. Answers of the pause are not graded."""
    _update_pause(options, online_evaluation, paused=False)


@app.command()
def delete(options: ServerOptions, online_evaluation: Id) -> None:
    """Delete an online evaluation with its rounds. The runs of its eval stay."""
    path = f"/online_evaluations/{online_evaluation}"
    options.show(options.server.delete(path), f"{online_evaluation} deleted")


def _update_pause(options: ServerOptions, online_evaluation: str, *, paused: bool) -> None:
    shown = options.server.post(f"/online_evaluations/{online_evaluation}", {"paused": paused})
    options.show(shown, f"{shown['id']} {shown['status']}, next {moment(shown['next_round_at'])}")


def _alert(shown: dict[str, Any]) -> str:
    return ": alert" if shown["is_alerting"] else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(shown: dict[str, Any]) -> tuple[object, ...]:
    numbers = f"{shown['share']:g} %", shown["status"], _number(shown["value"]), "yes" if shown["is_alerting"] else "no"
    return shown["id"], shown["name"], shown["eval_id"], *numbers, moment(shown["next_round_at"])


def _round_row(row: dict[str, Any]) -> tuple[object, ...]:
    interval = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    errored = "-" if row["errored"] is None else row["errored"]
    numbers = row["answers"], _number(row["pass_rate"]), interval, errored
    return row["id"], moment(row["until"]), row["status"], *numbers, row["error"] or "-"

"""`nightmill feedback`: rate answers, list what users say of them, and compare models by that."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment, say, show_table

app = Group("Rate answers, list what users say of them, and compare models by that.")
Model = Annotated[str | None, typer.Option(help="Only answers of this model.")]
Requested = Annotated[
    str | None, typer.Option("--requested-model", help="Only answers to requests for this name, such as an alias.")
]

#: By the beginning of an id: the type of the target, and the fields of the id and of the item.
_TARGETS = {
    "resp_": ("response", "response_id", ""),
    "chatcmpl-": ("chat.completion", "completion_id", ""),
    "batch_": ("batch.line", "batch_id", "custom_id"),
    "evalrun_": ("eval.run.output_item", "run_id", "output_item_id"),
}
_THUMBS = {"up": 1.0, "down": -1.0}


@app.command()
def add(
    options: ServerOptions,
    answer: Annotated[
        str, typer.Argument(metavar="ANSWER", help="The id of a response, chat completion, batch or run of an eval.")
    ],
    score: Annotated[
        str, typer.Argument(metavar="SCORE", help="`up`, `down`, or a number from -1 to 1; a negative one behind `--`.")
    ],
    item: Annotated[
        str | None, typer.Option(help="Of a batch the `custom_id` of the line, of a run the id of the output item.")
    ] = None,
    comment: Annotated[str | None, typer.Option(help="What there is to say about the answer.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Your id of the person who rates. Else the key is the rater.")
    ] = None,
) -> None:
    """Rate an answer, in place of what the same user said before; print the id of the feedback."""
    body = {"target": _target(answer, item), "score": _read_score(score), "comment": comment, "user": user}
    saved = options.server.post("/feedback", body)
    options.show(saved, saved["id"])


@app.command("list")
def list_(
    options: ServerOptions,
    model: Model = None,
    requested_model: Requested = None,
    answer: Annotated[str | None, typer.Option(help="Only feedback on this response, chat, batch or run.")] = None,
    min_score: Annotated[float, typer.Option(min=-1, max=1, help="Only scores of at least this.")] = -1,
    max_score: Annotated[float, typer.Option(min=-1, max=1, help="Only scores of at most this.")] = 1,
    limit: Limit = 100,
) -> None:
    """List the feedback of your project, the newest first."""
    query = {"min_score": min_score, "max_score": max_score}
    query |= _filters(model=model, requested_model=requested_model, target_id=answer)
    head = ("feedback", "answer", "score", "model", "user", "created", "comment")
    options.show_entries(options.server.pages("/feedback", query, limit), head, _row)


@app.command()
def delete(
    options: ServerOptions, feedback: Annotated[str, typer.Argument(metavar="FEEDBACK", help="Its id, fb_….")]
) -> None:
    """Delete feedback: it counts no longer."""
    deleted = options.server.delete(f"/feedback/{quote(feedback, safe='', errors='replace')}")
    options.show(deleted, f"{feedback} deleted")


@app.command()
def summary(
    options: ServerOptions,
    model: Model = None,
    baseline: Annotated[str | None, typer.Option(help="Another model, with which --model is compared.")] = None,
    requested_model: Requested = None,
    since: Annotated[int, typer.Option(min=0, help="Only feedback since this time, in Unix seconds.")] = 0,
) -> None:
    """Show by model how much of the feedback is positive, and how far two models differ."""
    query = {"since": since} | _filters(model=model, baseline=baseline, requested_model=requested_model)
    result = options.server.get("/feedback/summary", query)
    if options.as_json:
        options.show(result)
        return
    show_table(("model", "feedback", "mean score", "positive", "95 % interval"), map(_model_row, result["data"]))
    if difference := result["difference"]:
        value = f"{100 * difference['difference']:+.1f} points"
        say(f"{difference['model']} less {difference['baseline']}: {value}, 95 % interval {_points(difference)}")


def _target(answer: str, item: str | None) -> dict[str, Any]:
    """Return what an id names, with the item of a batch or run. Raises CliError."""
    prefix = next((prefix for prefix in _TARGETS if answer.startswith(prefix)), None)
    if prefix is None:
        raise CliError(f"{answer}: give the id of a response, chat completion, batch or run of an eval")
    type_, id_field, item_field = _TARGETS[prefix]
    if bool(item_field) != (item is not None):
        raise CliError(f"--item names a line of a batch or an output item of a run, and {answer} is a {type_}")
    return {"type": type_, id_field: answer} | ({item_field: item} if item_field else {})


def _read_score(text: str) -> float:
    try:
        return _THUMBS[text] if text in _THUMBS else float(text)
    except ValueError:
        raise CliError(f"{text}: a score is `up`, `down`, or a number from -1 to 1") from None


def _filters(**query: str | None) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _points(interval: dict[str, Any]) -> str:
    return f"{100 * interval['low']:+.1f} to {100 * interval['high']:+.1f}"


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    names = [value for name, value in entry["target"].items() if name != "type"]
    columns = (entry["model"] or "-", entry["user"] or "-", moment(entry["created_at"]), entry["comment"] or "")
    return entry["id"], " ".join(names), entry["score"], *columns


def _model_row(row: dict[str, Any]) -> tuple[object, ...]:
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
    return (
        row["model"] or "-",
        row["count"],
        f"{row['mean_score']:+.2f}",
        f"{100 * row['positive_share']:.1f} %",
        interval,
    )

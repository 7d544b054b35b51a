"""`nightmill evals`: evaluate a model on a file of items, follow runs, and compare them."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from cli.client.eval_runs import (
    await_end,
    eval_of,
    find_baseline,
    items_path,
    pair_runs,
    read_items,
    rows_of,
    upload_items,
)
from cli.client.server import Server
from cli.client.submission import read_json
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.output_files import require_writable
from cli.terminal import moment, say, show_json, show_table

if TYPE_CHECKING:
    from jobs.evals.comparison import PairedComparison
    from jobs.evals.regression import RegressionDecision

app = Group("Evaluate models on your items, and compare the runs.")
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `nightmill evals list` shows it.")]
_WORST: Final = 50  # regressions in a report
_NAMED: Final = 5  # items that only one run has
_MATRIX: Final = 10  # labels of a confusion matrix that a terminal shows
_NUMBERS: Final = ("items", "first", "second", "difference", "95 %", "better", "worse", "p")
_SAMPLE: Final = "{{ sample.output_text }}"
_NO_RUN: Final[Mapping[str, Any]] = {"data_source": {"type": "jsonl"}}
_INCONCLUSIVE: Final = 3  # the exit code


@dataclass(frozen=True)
class BaselineOptions(ServerOptions):
    """The options of a command whose run is compared with a baseline."""

    baseline: Annotated[
        str,
        typer.Option(
            metavar="RUN", help="Compare with this run, which has the items, messages and settings that are not given."
        ),
    ] = ""
    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse", help="End with exit code 1 if the run is worse, 3 if more items have to decide."
        ),
    ] = False
    margin: Annotated[
        float,
        typer.Option(min=0, max=100, metavar="POINTS", help="The loss that is accepted, in % of a score's range."),
    ] = 5.0
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="The probability with which the comparison is to be right.")
    ] = 0.95
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Also write JUnit's XML.")] = None
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Also add a summary in Markdown to the end of this file.")
    ] = None
    idempotency_key: Annotated[
        str,
        typer.Option(
            envvar="NIGHTMILL_IDEMPOTENCY_KEY", help="With the same key, the command waits for the run that it started."
        ),
    ] = ""

    def check(self) -> None:
        """Raise CliError for options without a baseline, and for files that cannot be written."""
        if not self.baseline and (self.fail_if_worse or self.junit or self.summary):
            raise CliError("name the run to compare with: --baseline")
        for path in filter(None, (self.junit, self.summary)):
            require_writable(path)


@app.command()
def create(
    options: ServerOptions,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="JSON: the body of `POST /v1/evals`.")
    ],
) -> None:
    """Create an eval from a file, and print its id."""
    body = read_json(file)
    made = options.server.post("/evals", body)
    options.show(made, made["id"])


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 20) -> None:
    """List the runs of your project's evals, the newest evals first."""
    server = options.server
    runs = [run for row in server.pages("/evals", {"order": "desc"}, limit) for run in _runs(server, row["id"], limit)]
    options.show_entries(runs[:limit], ("run", "eval", "name", "model", "status", "created"), _run_row)


@app.command()
def run(
    options: BaselineOptions,
    eval_: Annotated[str, typer.Argument(metavar="EVAL", help="An eval that exists, instead of graders.")] = "",
    data: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Items: a .jsonl file of objects, or a .csv file.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model to evaluate. Without one the items have their samples.")] = "",
    prompt: Annotated[
        str, typer.Option(help="The user's message, such as '{{ item.question }}'. Without one, `item.messages`.")
    ] = "",
    grader: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND:REFERENCE",
            help="'same=eq:{{ item.answer }}', 'near=rouge_l>=0.5:{{ item.answer }}', or a .json file of graders.",
        ),
    ] = None,
    named: Annotated[str, typer.Option("--eval", metavar="EVAL", hidden=True, help="The same as EVAL.")] = "",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="End with exit code 1 if a smaller share passes: same=0.8."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Without one 0, which lets answers be repeated from the cache.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=16, help="Samples of each item. Without one 1.")] = None,
    name: Annotated[str, typer.Option(help="The name of the run.")] = "",
) -> None:
    """Evaluate a model and wait for the result. Exit code 1 if the run fails, too little passes, or it is worse."""
    options.check()
    eval_id = eval_ or named
    if bool(grader) + bool(eval_id) != 1 and (grader or not options.baseline):
        raise CliError("name the graders with --grader, or an eval that exists")
    if not data and not options.baseline:
        raise CliError("name the items with --data, or a run that has them with --baseline")
    criteria = [definition for text in grader or () for definition in graders_of(text)]
    bounds = dict(_parse_bound(text) for text in fail_under or ())
    server, key = options.server, options.idempotency_key or str(uuid.uuid4())
    baseline = find_baseline(server, options.baseline) if options.baseline else None
    eval_id = eval_id or (baseline or {}).get("eval_id", "") if not grader else ""
    if eval_id:
        criteria = server.get(f"/evals/{eval_id}")["testing_criteria"]
    _check_bounds(bounds, criteria)
    sampling = _sampling(model, prompt, {"temperature": temperature, "n": samples}, baseline)
    title = name or (data.stem if data else f"{sampling.get('model', '')} beside {options.baseline}")
    say(f"idempotency key: {key}", err=True)
    rows = read_items(data) if data else rows_of(server, items_path(server, options.baseline))
    source = {"type": "file_id", "id": upload_items(server, rows, data.stem if data else options.baseline, key)}
    eval_id = eval_id or _new_eval(server, title, criteria, key)
    body = {"name": title, "data_source": sampling | {"source": source}}
    made = server.post(f"/evals/{eval_id}/runs", body, key=key)
    if not options.as_json:
        say(made["id"])
    advice = f"the same command with --idempotency-key {key} waits for it"
    done = await_end(server, eval_id, made["id"], advice)
    _show_end(done, as_json=options.as_json)
    decision = _compare_with_baseline(options, baseline, done, criteria) if baseline else None
    _judge(done, bounds)
    if decision and options.fail_if_worse:
        _judge_decision(decision)


@app.command()
def watch(options: ServerOptions, run: Run) -> None:
    """Wait until a run ends, and show its result. Exit code 1 if it failed or was cancelled."""
    done = await_end(options.server, eval_of(options.server, run), run)
    _show_end(done, as_json=options.as_json)


@app.command()
def compare(
    options: ServerOptions,
    first: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare with.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run that may be better.")],
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a report for a browser.")] = None,
    slice_by: Annotated[
        str, typer.Option(metavar="PATH", help="Compare for each value of a field too: item.language.")
    ] = "",
    fail_on: Annotated[
        Literal["worse", "inconclusive"] | None,
        typer.Option(help="End with exit code 1 if a criterion is worse, or, with inconclusive, if one is not better."),
    ] = None,
) -> None:
    """Compare two runs item by item: differences, their intervals, and whether one is better, worse or inconclusive."""
    from jobs.evals import comparison

    worst = _WORST if report is not None else 0
    pairing, shown = pair_runs(options.server, first, second, slice_by, worst)
    overall = comparison.compare(pairing.criteria, pairing.pairs)
    slices = comparison.compare_slices(pairing.criteria, pairing.slices)
    compared = [("", row) for row in overall] + slices
    gaps = comparison.gaps(pairing.criteria, pairing.slices)
    if options.as_json:
        show_json([_comparison_object(group, row) for group, row in compared])
        show_json([asdict(gap) for gap in gaps])
    else:
        show_table(
            ("criterion", "slice", *_NUMBERS, "verdict"), [_comparison_row(group, row) for group, row in compared]
        )
        if gaps:
            show_table(("criterion", "run", "highest", "lowest", "gap", "95 %"), map(_gap_row, gaps))
    for only, run_id in ((pairing.only_first, first), (pairing.only_second, second)):
        if only.count:
            more = " …" if only.count > _NAMED else ""
            say(f"left out: {only.count} items that only {run_id} has: {', '.join(only.ids[:_NAMED])}{more}", err=True)
    if report is not None:
        from cli.client.comparison_report import report_page

        report.write_text(report_page(first, second, pairing, compared, gaps, shown))
        say(str(report.absolute()), err=options.as_json)
    _check_verdicts(overall, fail_on)


# ── what is asked for ──


def graders_of(text: str) -> list[dict[str, Any]]:
    """Return the graders that a value of --grader names. Raises CliError."""
    from jobs.evals.graders import kinds

    if text.endswith(".json") and Path(text).is_file():
        value = read_json(Path(text))
        return value if isinstance(value, list) else [value]
    name, _, rest = text.partition("=")
    kind, separator, reference = rest.partition(":")
    kind, _, threshold = kind.partition(">=")
    known = kinds()
    fields = known.get(kind, {})
    if not (name and separator and fields) or (threshold and "pass_threshold" not in fields):
        message = f"--grader {text}: it is NAME=KIND:REFERENCE, or a .json file that exists; KIND is one of "
        raise CliError(message + ", ".join(known))
    if threshold:
        fields["pass_threshold"] = _number(threshold, text)
    return [{**fields, "name": name, "input": _SAMPLE, "reference": reference}]


def _parse_bound(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    return name, _number(share, text)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{whole}: '{text}' is no number") from None


def _check_bounds(bounds: dict[str, float], criteria: Sequence[dict[str, Any]]) -> None:
    names = [criterion["name"] for criterion in criteria]
    for name in bounds:
        if name not in names:
            raise CliError(f"--fail-under {name}: no grader has that name; there are {', '.join(names)}")


def _new_eval(server: Server, name: str, criteria: list[dict[str, Any]], key: str) -> str:
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    made = server.post("/evals", {"name": name, "data_source_config": config, "testing_criteria": criteria}, key=key)
    return str(made["id"])


def _sampling(model: str, prompt: str, params: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a run's data source without its items: that of the baseline, if any, with what is given in its place.

    Raises: CliError.
    """
    source = {name: value for name, value in (baseline or _NO_RUN)["data_source"].items() if value is not None}
    model = model or source.get("model", "")
    if source["type"] in ("retrieval", "perplexity"):
        return source | ({"model": model} if model else {})
    if not model:
        if baseline is None:
            return source
        raise CliError(f"{baseline['id']} asked no model: name one with --model")
    messages = source.get("input_messages") or {"type": "item_reference", "item_reference": "item.messages"}
    if prompt:
        messages = {"type": "template", "template": [{"role": "user", "content": prompt}]}
    asked = source.get("sampling_params", {}) if "model" in source else {"temperature": 0.0, "n": 1}
    given = {name: value for name, value in params.items() if value is not None}
    settings = {name: value for name, value in asked.items() if value is not None} | given
    kind = "responses" if source["type"] == "responses" else "completions"
    return {"type": kind, "model": model, "input_messages": messages, "sampling_params": settings}


# ── what is shown ──


def _runs(server: Server, eval_id: str, limit: int) -> list[dict[str, Any]]:
    return server.pages(f"/evals/{eval_id}/runs", {"order": "desc"}, limit)


def _show_end(done: dict[str, Any], *, as_json: bool) -> None:
    """Show the results of a run. Raises CliError when it is not complete."""
    results = done["per_testing_criteria_results"] or []
    if as_json:
        show_json(done)
    elif results:
        show_table(("criterion", "passed", "failed", "errored", "share"), map(_result_row, results))
        for result in results:
            if classification := result.get("classification"):
                _show_classification(classification)
            if agreement := result.get("agreement"):
                numbers = (f"{name} {_round(agreement[name])}" for name in ("share", "kappa"))
                say(f"{result['testing_criteria']}: agreement on {agreement['items']} items: {', '.join(numbers)}")
    if done["status"] != "completed":
        why = f": {done['error']['message']}" if done["error"] else ""
        raise CliError(f"{done['id']} {done['status']}{why}")


def _round(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _show_classification(classification: dict[str, Any]) -> None:
    """Show the metrics of each label, their means, and what was predicted instead of what."""
    names = ("precision", "recall", "f1")
    rows = [
        (label, *(f"{metrics[name]:.3f}" for name in names), metrics["support"])
        for label, metrics in classification["labels"].items()
    ]
    total = sum(metrics["support"] for metrics in classification["labels"].values())
    rows.append(("(mean)", *(f"{classification[f'macro_{name}']:.3f}" for name in names), total))
    show_table(("label", *names, "items"), rows)
    matrix = classification["confusion_matrix"]
    if len(matrix["labels"]) <= _MATRIX:
        counts = zip(matrix["labels"], matrix["counts"], matrix["other"], strict=True)
        show_table(
            ("expected \\ predicted", *matrix["labels"], "(other)"), [(label, *row, n) for label, row, n in counts]
        )


def _judge(done: dict[str, Any], bounds: dict[str, float]) -> None:
    """Raise CliError where a smaller share passes than was asked for."""
    for result in done["per_testing_criteria_results"] or ():
        bound = bounds.get(result["testing_criteria"])
        if bound is not None and _share(result) < bound:
            raise CliError(f"{result['testing_criteria']}: {_share(result):.3f} of the items pass, less than {bound:g}")


def _compare_with_baseline(
    options: BaselineOptions, baseline: Mapping[str, Any], done: Mapping[str, Any], criteria: Sequence[dict[str, Any]]
) -> "RegressionDecision":
    """Show the comparison of a run with its baseline and write the reports. Return the decision. Raises CliError."""
    from cli.client.regression_report import MAX_WORST, RegressionReport
    from jobs.evals.regression import decide

    worst = MAX_WORST if options.junit or options.summary else 0
    pairing, items = pair_runs(options.server, baseline["id"], done["id"], worst=worst)
    decision = decide(pairing, 1 - options.confidence, options.margin, criteria)
    report = RegressionReport(decision, baseline, done, items, options.margin, options.confidence)
    if options.as_json:
        show_json(report.summary())
    else:
        show_table(report.HEAD, report.rows())
    if options.junit:
        options.junit.write_bytes(report.junit())
    if options.summary:
        with options.summary.open("a", encoding="utf-8") as out:
            out.write(report.markdown())
    return decision


def _judge_decision(decision: "RegressionDecision") -> None:
    """End the command where the run is worse than its baseline, or where that is undecided. Raises CliError, Exit."""
    if decision.outcome == "not worse":
        return
    reasons = "; ".join(decision.reasons)
    if decision.outcome == "worse":
        raise CliError(reasons)
    say(f"nightmill: {reasons}", err=True)
    raise typer.Exit(_INCONCLUSIVE)


def _check_verdicts(rows: Sequence["PairedComparison"], fail_on: str | None) -> None:
    """Raise CliError where a criterion is worse, or has the verdict `fail_on`. None accepts all verdicts."""
    refused = [f"{row.criterion}: {row.verdict_text}" for row in rows if row.verdict in ("worse", fail_on)]
    if refused and fail_on is not None:
        raise CliError("; ".join(refused))


def _share(result: dict[str, Any]) -> float:
    total = result["passed"] + result["failed"] + result["errored"]
    return float(result["passed"] / total) if total else 0.0


def _result_row(result: dict[str, Any]) -> tuple[object, ...]:
    counts = (result["passed"], result["failed"], result["errored"])
    return result["testing_criteria"], *counts, f"{_share(result):.3f}"


def _run_row(run: dict[str, Any]) -> tuple[object, ...]:
    return run["id"], run["eval_id"], run["name"], run["model"] or "-", run["status"], moment(run["created_at"])


def _comparison_object(group: str, row: "PairedComparison") -> dict[str, Any]:
    return {"slice": group or None, **asdict(row), "difference": row.difference, "verdict": row.verdict}


def _comparison_row(group: str, row: "PairedComparison") -> tuple[object, ...]:
    means = (f"{row.first:.3f}", f"{row.second:.3f}", f"{row.difference:+.3f}", f"{row.low:+.3f} … {row.high:+.3f}")
    return row.criterion, group or "all", row.items_text, *means, row.better, row.worse, row.p_text, row.verdict_text


def _gap_row(gap: Any) -> tuple[object, ...]:
    return gap.criterion, gap.run, gap.highest, gap.lowest, f"{gap.gap:.3f}", f"{gap.low:+.3f} … {gap.high:+.3f}"

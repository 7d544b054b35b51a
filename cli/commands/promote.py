"""`nightmill promote`: move an alias, a prompt or an index to a candidate, if runs of an eval say so."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.client.eval_runs import read_items, upload_items
from cli.client.progress import follow
from cli.client.server import Server
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment, say

app = Group("Move an alias, a prompt or an index to a candidate, if an eval finds it good enough.")
Message = Annotated[
    str, typer.Option(help="The user's message, such as '{{ item.question }}'. Without one, `item.messages`.")
]
Id = Annotated[str, typer.Argument(metavar="PROMOTION", help="Its id, as `nightmill promote list` shows it.")]
_INCONCLUSIVE: Final = 3  # the exit code, as that of `evals run --fail-if-worse`
_MARGIN: Final = 5.0


@dataclass(frozen=True)
class GateOptions(ServerOptions):
    """The options of a command that promotes: the gate, or why there is none."""

    eval_id: Annotated[str, typer.Option("--eval", metavar="EVAL", help="The eval that decides.")] = ""
    data: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Items: a .jsonl file of objects, or a .csv file.")
    ] = None
    margin: Annotated[
        float | None,
        typer.Option(
            "--not-worse", min=0, max=100, metavar="POINTS",
            help="The loss to the incumbent that is accepted, in % of a score's range. Without --minimum 5.",
        ),
    ] = None  # fmt: skip
    minimum: Annotated[
        float | None, typer.Option(metavar="SCORE", help="The smallest mean score of the candidate.")
    ] = None
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help="The criterion that decides. Without one all of them do.")
    ] = ""
    force: Annotated[bool, typer.Option("--force", help="Move without a gate, for a --reason.")] = False
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = ""
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end. Exit code 1 if it is refused, 3 if it is inconclusive.")
    ] = False
    idempotency_key: Annotated[
        str,
        typer.Option(
            envvar="NIGHTMILL_IDEMPOTENCY_KEY", help="With the same key, the command finds the promotion it has made."
        ),
    ] = ""

    def promote(self, target: Mapping[str, str], source: Mapping[str, Any]) -> None:
        """Create the promotion of a target, whose gate asks as the data source says; show it. Raises CliError, Exit."""
        if not self.force and not (self.eval_id and self.data):
            raise CliError("name the gate with --eval and --data, or use --force with a --reason")
        key = self.idempotency_key or str(uuid.uuid4())
        body: dict[str, Any] = {"target": target, "force": self.force}
        if self.reason:
            body["reason"] = self.reason
        if self.data is not None and self.eval_id:
            items = {"type": "file_id", "id": upload_items(self.server, read_items(self.data), self.data.stem, key)}
            gate = {"eval_id": self.eval_id, "data_source": {**source, "source": items}}
            if self.criterion:
                gate["criterion"] = self.criterion
            body["gates"] = [gate | {"rule": rule} for rule in self._rules()]
        made = self.server.post("/promotions", body, key=key)
        if not self.wait:
            self.show(made, made["id"])
            return
        say(made["id"], err=True)
        done = _await_end(self.server, made)
        self.show(done, *_lines(done))
        _judge(done)

    def _rules(self) -> list[dict[str, Any]]:
        """Return the rules that the options name."""
        rules = list[dict[str, Any]]()
        if self.minimum is not None:
            rules.append({"type": "minimum", "score": self.minimum})
        if self.margin is not None or not rules:
            margin = _MARGIN if self.margin is None else self.margin
            rules.append({"type": "not_worse_than_incumbent", "margin": margin})
        return rules


@app.command()
def alias(
    options: GateOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The alias.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model for which it is to stand.")],
    prompt: Message = "",
) -> None:
    """Let an alias stand for a model, if the model passes the gate; print the promotion's id."""
    options.promote({"type": "alias", "id": name, "model": model}, _completions(name, prompt))


@app.command()
def stage(
    options: GateOptions,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The tuned model.")],
    prompt: Message = "",
) -> None:
    """Put a tuned model into production in its family, if it passes the gate."""
    options.promote({"type": "stage", "id": model, "stage": "production"}, _completions(model, prompt))


@app.command()
def prompt(
    options: GateOptions,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt's id.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The number of its new default version.")],
    model: Annotated[str, typer.Option(help="The model to ask, where the prompt names none.")] = "",
) -> None:
    """Make a version of a prompt the default, if it passes the gate. Each variable is the item's field of its name."""
    source: dict[str, Any] = {"type": "completions"}
    if not options.force:
        declared = options.server.get(f"/prompts/{prompt}/versions/{version}")["variables"]
        variables = {row["name"]: "{{ item." + row["name"] + " }}" for row in declared}
        source["input_messages"] = {"type": "prompt", "prompt": {"id": prompt, "variables": variables}}
    options.promote({"type": "prompt", "id": prompt, "version": version}, source | ({"model": model} if model else {}))


@app.command()
def index(
    options: GateOptions,
    store: Annotated[str, typer.Argument(metavar="STORE", help="The vector store's id.")],
    index: Annotated[str, typer.Argument(metavar="INDEX", help="The id of the index that searches are to read.")],
    query: Annotated[str, typer.Option(help="What is searched for.")] = "{{ item.query }}",
) -> None:
    """Switch a vector store to an index, if its searches pass the gate."""
    source = {"type": "retrieval", "vector_store_id": store, "query": query}
    options.promote({"type": "index", "id": store, "index_id": index}, source)


@app.command("list")
def list_(options: ServerOptions, limit: Limit = 20) -> None:
    """List the promotions of your project, the newest first."""
    head = ("promotion", "target", "from", "to", "status", "created")
    options.show_entries(options.server.pages("/promotions", {}, limit), head, _row)


@app.command()
def show(options: ServerOptions, promotion: Id) -> None:
    """Show a promotion with the reports of its gates."""
    shown = options.server.get(f"/promotions/{promotion}")
    options.show(shown, *_lines(shown))


@app.command()
def cancel(options: ServerOptions, promotion: Id) -> None:
    """Stop a promotion and its runs: nothing moves."""
    shown = options.server.post(f"/promotions/{promotion}/cancel")
    options.show(shown, *_lines(shown))


def _await_end(server: Server, promotion: Mapping[str, Any]) -> dict[str, Any]:
    """Show the progress of the runs of a promotion; return the promotion when it has ended."""
    runs = (gate[name] for gate in promotion["gates"] for name in ("candidate_run_id", "incumbent_run_id"))
    for job_id in dict.fromkeys((*filter(None, runs), promotion["id"])):
        follow(server, job_id)
    return server.get(f"/promotions/{promotion['id']}")


def _judge(promotion: Mapping[str, Any]) -> None:
    """End the command where a promotion has moved nothing. Raises CliError, Exit."""
    if promotion["status"] == "promoted":
        return
    reason = promotion["error"]["message"] if promotion["error"] else "it moved nothing"
    if promotion["status"] != "inconclusive":
        raise CliError(f"{promotion['status']}: {reason}")
    say(f"nightmill: inconclusive: {reason}", err=True)
    raise typer.Exit(_INCONCLUSIVE)


def _completions(model: str, prompt: str) -> dict[str, Any]:
    """Return the source of a run that asks a model for answers to the items of a file."""
    messages: dict[str, Any] = {"type": "item_reference", "item_reference": "item.messages"}
    if prompt:
        messages = {"type": "template", "template": [{"role": "user", "content": prompt}]}
    return {"type": "completions", "model": model, "input_messages": messages, "sampling_params": {"temperature": 0.0}}


def _candidate(target: Mapping[str, Any]) -> str:
    return str(next(value for name, value in target.items() if name not in ("type", "id")))


def _lines(promotion: Mapping[str, Any]) -> Iterator[str]:
    target = promotion["target"]
    move = f"{target['type']} {target['id']}, from {promotion['incumbent'] or 'none'} to {_candidate(target)}"
    forced = ", forced" if promotion["force"] else ""
    yield f"{promotion['id']}: {promotion['status']}{forced}, {move}"
    if promotion["error"]:
        yield f"  {promotion['error']['code']}: {promotion['error']['message']}"
    for gate in promotion["gates"]:
        report = gate["report"] or {"outcome": "in progress", "criteria": []}
        yield f"  {gate['eval_id']}, {gate['rule']['type'].replace('_', ' ')}: {report['outcome']}"
        yield from (f"    {_describe(row)}" for row in report["criteria"])


def _describe(row: Mapping[str, Any]) -> str:
    """Return the report of a criterion as a line."""
    scores = f"{row['criterion']}: {row['outcome']}, {_round(row['candidate'])}"
    if row["incumbent"] is not None:
        bounds = f"{row['difference']:+.3f} ({row['low']:+.3f} … {row['high']:+.3f})"
        scores += f" against {_round(row['incumbent'])}, {bounds}"
    needed = f", about {row['further_items']} more would decide" if row["further_items"] else ""
    return f"{scores}, {row['items']} items{needed}"


def _round(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _row(promotion: Mapping[str, Any]) -> tuple[object, ...]:
    target = promotion["target"]
    named = f"{target['type']} {target['id']}"
    columns = (
        promotion["incumbent"] or "none",
        _candidate(target),
        promotion["status"],
        moment(promotion["created_at"]),
    )
    return promotion["id"], named, *columns

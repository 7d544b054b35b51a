"""`nightmill models versions` and its siblings: the versions of tuned models, their stages and their lineage."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client.submission import parse_time
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment, say, show_table

app = Group("The versions of tuned models: a part of `nightmill models`.")
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The name of a tuned model, ft:….")]

_STAGES = "none, staging, production or archived"
_KINDS = "base, index, prompt, server_model or tuned_model"


@app.command()
def versions(
    options: ServerOptions,
    family: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help="Only versions of this family, <base>:<suffix>, or of that of a model."),
    ] = None,
    stage: Annotated[str | None, typer.Option(help=f"Only versions in this stage: {_STAGES}.")] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Versions and stages of then, such as 2026-03-31T18:00."),
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the versions of tuned models with their stages, the newest first."""
    server = options.server
    if family is not None and family.startswith("ft:"):
        family = server.get(_path(family))["family"]
    query: dict[str, Any] = {"family": family, "stage": stage, "at": None if at is None else parse_time(at)}
    given = {name: value for name, value in query.items() if value is not None}
    head = ("model", "family", "version", "stage", "created", "metrics")
    options.show_entries(server.pages("/model_versions", given, limit), head, _row)


@app.command()
def families(
    options: ServerOptions,
    family: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="Show the versions of this one, such as prompt:pmpt_1.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only families of this kind: {_KINDS}.")] = None,
    limit: Limit = 100,
) -> None:
    """List all names with versions: tuned models, bases, models of servers, prompts and indexes."""
    server = options.server
    if family is None:
        given = {} if kind is None else {"kind": kind}
        names = ("family", "versions", "latest", "production", "created")
        options.show_entries(server.pages("/families", given, limit), names, _family_row)
        return
    path = f"/families/{quote(family, safe='')}/versions"
    facts = ("version", "stage", "name", "source", "fingerprint", "created")
    options.show_entries(server.pages(path, {}, limit), facts, _family_version_row)


@app.command()
def show(options: ServerOptions, model: Model) -> None:
    """Show a version: where it comes from, what it was measured at, and how its stage changed."""
    version = options.server.get(_path(model))
    moves = options.server.pages(f"{_path(model)}/moves", {}, 100)
    facts = [(name, value) for name, value in version.items() if name not in ("manifest", "object", "metrics")]
    facts += [(f"metrics.{name}", value) for name, value in version["metrics"].items()]
    facts += [(f"data.{data['role']}", f"{data['file_id']} {data['sha256']}") for data in version["manifest"]["data"]]
    lines = [f"{name}: {value}" for name, value in facts if value is not None]
    options.show({**version, "moves": list(moves)}, *lines, *map(_describe_move, moves))


@app.command()
def stage(
    options: ServerOptions,
    model: Model,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"The new stage: {_STAGES}.")],
    reason: Annotated[str | None, typer.Option(help="Why; it stays in the history.")] = None,
    archive_existing: Annotated[
        bool, typer.Option("--archive-existing", help="Move the version that is in production to `archived`.")
    ] = False,
) -> None:
    """Move a version to a stage. One version of a family is in production."""
    body = {"stage": stage, "reason": reason, "archive_existing": archive_existing}
    version = options.server.post(_path(model), body)
    options.show(version, f"version {version['number']} of {version['family']} is in the stage {version['stage']}")


@app.command()
def update(
    options: ServerOptions,
    model: Model,
    semantic_version: Annotated[str | None, typer.Option(help="Such as 1.4.0.")] = None,
    license: Annotated[str | None, typer.Option(help="In place of that of the base.")] = None,  # noqa: A002
    git_commit: Annotated[str | None, typer.Option(help="The commit of the code that made the data.")] = None,
    dvc_hash: Annotated[str | None, typer.Option(help="The hash by which DVC knows the data.")] = None,
) -> None:
    """Say more about a version: its semantic version, its licence, the commit and the data it was made with."""
    facts = {"semantic_version": semantic_version, "license": license, "git_commit": git_commit, "dvc_hash": dvc_hash}
    given = {name: value for name, value in facts.items() if value is not None}
    version = options.server.post(_path(model), given)
    options.show(version, f"version {version['number']} of {version['family']} is changed")


@app.command()
def lineage(options: ServerOptions, model: Model) -> None:
    """Draw the data, jobs and models that a version comes from, its evaluations and its aliases."""
    from cli.client.lineage import draw_lineage

    shown = options.server.get(f"{_path(model)}/lineage")
    options.show(shown, *draw_lineage(shown))


@app.command()
def compare(
    options: ServerOptions,
    first: Model,
    second: Annotated[str, typer.Argument(metavar="OTHER", help="The name of the other one.")],
    whole: Annotated[bool, typer.Option("--all", help="Show also what is the same.")] = False,
) -> None:
    """Show two versions side by side: data, options, libraries, hardware, metrics and evaluations."""
    from cli.client.version_comparison import compare_versions

    rows = compare_versions(options.server.get(_path(first)), options.server.get(_path(second)))
    if options.as_json:
        options.show(rows)
        return
    shown = [row for row in rows if whole or row["differs"]]
    cells = [(row["fact"], _cell(row["first"]), _cell(row["second"]), "yes" if row["differs"] else "") for row in shown]
    show_table(("fact", "first", "second", "differs"), cells)


@app.command()
def verify(
    options: ServerOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `nightmill finetune export` made.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The version that it has to be, as the server knows it.")
    ] = "",
) -> None:
    """Check the files of an exported model by their hashes. Exit code 1 if one was changed, added or removed."""
    from cli.client.model_export import verify

    sha256, faults = verify(folder)
    if model and options.server.get(_path(model))["sha256"] != sha256:
        faults.append(f"its manifest is not that of {model}")
    if faults:
        raise CliError(f"{folder} is not as it was exported: {'; '.join(faults)}")
    options.show({"path": str(folder), "sha256": sha256}, f"{folder} is as it was exported, SHA-256 {sha256}")


@app.command("import")
def import_model(
    options: ServerOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `nightmill finetune export` made.")],
    family: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="The family of the version, <base>:<suffix>, or its suffix.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base, where it has another name here than the adapter says."),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The tuned model of your project that this one came of.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="In place of that of the base.")] = None,  # noqa: A002
) -> None:
    """Register an exported adapter as a version of a model, which is then served like one that was trained here.

    The server checks every hash, and the adapter against the base. Exit code 1 if one is not right.
    """
    from cli.client import model_import

    base, suffix = model_import.split_family(family, base, folder)
    given = {"base": base, "suffix": suffix, "parent": parent, "license": license}
    version = model_import.import_model(options.server, folder, given)
    options.show(version, f"{version['id']} is version {version['number']} of {version['family']}")


@app.command()
def reproduce(
    options: ServerOptions,
    model: Model,
    job: Annotated[
        str, typer.Option(metavar="JOB", help="A job that repeats the training already: only wait for it and report.")
    ] = "",
) -> None:
    """Train a version once more with the same data, options and seed; report what differs.

    Exit code 1 if its data were erased, or the new job fails. The new model is the next version of the family.
    """
    from cli.client import reproduction
    from cli.commands.finetune import await_end, check_succeeded

    server = options.server
    old = server.get(_path(model))
    if old["fine_tuning_job"] is None:
        raise CliError(f"{model} was imported: nothing here trained it")
    first = server.get(f"/fine_tuning/jobs/{old['fine_tuning_job']}")
    if not job:
        body = reproduction.request_of(old, first)
        job = server.post("/fine_tuning/jobs", body | {"metadata": {"reproduces": model}})["id"]
        say(f"{job} repeats the training of {model}", err=True)
    ended = await_end(server, job, lambda _event: None)
    check_succeeded(ended)
    new = server.get(_path(ended["fine_tuned_model"]))
    losses = [reproduction.losses_of(server, made) for made in (first, ended)]
    report = reproduction.report_of(server, old, new, losses)
    options.show(report, f"{new['id']} repeats {model}", *reproduction.describe_report(report))


def _path(model: str) -> str:
    return f"/model_versions/{quote(model, safe='', errors='replace')}"


def _cell(value: object) -> object:
    return "-" if value is None else value


def _row(version: dict[str, Any]) -> tuple[object, ...]:
    number = version["semantic_version"] or version["number"]
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in version["metrics"].items() if name != "step")
    return version["id"], version["family"], number, version["stage"], moment(version["created_at"]), metrics


def _family_row(family: dict[str, Any]) -> tuple[object, ...]:
    counted = (family["versions"], family["latest"], _cell(family["production"]))
    return family["id"], *counted, moment(family["created_at"])


def _family_version_row(version: dict[str, Any]) -> tuple[object, ...]:
    facts = (_cell(version["source"]), (version["fingerprint"] or "-")[:12])
    return version["number"], version["stage"], version["name"], *facts, moment(version["created_at"])


def _describe_move(move: dict[str, Any]) -> str:
    reason = f": {move['reason']}" if move["reason"] else ""
    return (
        f"{moment(move['created_at'])} {move['actor']} moved it from {move['former_stage']} to {move['stage']}{reason}"
    )

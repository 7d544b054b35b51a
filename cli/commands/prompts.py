"""`nightmill prompts`: prompts, their versions, and what differs between two of them."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client.submission import read_json
from cli.errors import CliError
from cli.groups import Group
from cli.options import Limit, ServerOptions
from cli.terminal import moment

app = Group("Keep prompts in versions, which requests name by id.")
Id = Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt's id, as `nightmill prompts list` shows it.")]
File = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="The content as JSON: instructions, messages, model, parameters, variables."),
]
Name = Annotated[str | None, typer.Option(help="The name of the prompt.")]
Model = Annotated[str | None, typer.Option(help="The model of requests that name none.")]
Instructions = Annotated[str | None, typer.Option(help="The instructions, with {{name}} for a variable.")]
_CONTENT = ("model", "instructions", "messages", "tools", "tool_choice", "text", "parameters", "variables")


@app.command("list")
def list_(
    options: ServerOptions,
    name: Annotated[str | None, typer.Option(help="Only prompts of this name.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="The archived prompts instead of the others.")] = False,
    limit: Limit = 100,
) -> None:
    """List the prompts of your project, the newest first."""
    query = {"archived": str(archived).lower()} | ({} if name is None else {"name": name})
    head = ("prompt", "name", "default", "latest", "labels", "model", "created")
    options.show_entries(options.server.pages("/prompts", query, limit), head, _row)


@app.command()
def show(
    options: ServerOptions,
    prompt: Id,
    version: Annotated[str | None, typer.Option(help="The number of a version, or a label. Else the default.")] = None,
) -> None:
    """Show a version of a prompt."""
    shown = _version(options, prompt, version)
    head = f"{shown['prompt_id']} version {shown['version']}, created {moment(shown['created_at'])}"
    options.show(shown, head, *_lines(shown))


@app.command()
def create(
    options: ServerOptions,
    file: File = None,
    name: Name = None,
    model: Model = None,
    instructions: Instructions = None,
) -> None:
    """Create a prompt with its first version; print its id."""
    made = options.server.post("/prompts", _content(file, name=name, model=model, instructions=instructions))
    options.show(made, made["id"])


@app.command()
def version(
    options: ServerOptions, prompt: Id, file: File = None, model: Model = None, instructions: Instructions = None
) -> None:
    """Add a version to a prompt; print its number. The default version stays until `update --default`."""
    path = f"/prompts/{prompt}/versions"
    made = options.server.post(path, _content(file, model=model, instructions=instructions))
    options.show(made, made["version"])


@app.command()
def update(
    options: ServerOptions,
    prompt: Id,
    name: Name = None,
    default: Annotated[str | None, typer.Option(metavar="VERSION", help="The new default version.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=VERSION", help="Let a label name a version, or none: `beta=`. May be repeated."),
    ] = None,
) -> None:
    """Change the name, the default version or labels of a prompt."""
    given = {"name": name, "default_version": default}
    body: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if label:
        body["labels"] = options.server.get(f"/prompts/{prompt}")["labels"] | dict(map(_read_label, label))
    changed = options.server.post(f"/prompts/{prompt}", body)
    options.show(changed, f"{changed['id']} default {changed['default_version']}, labels {_labels(changed)}")


@app.command()
def archive(
    options: ServerOptions,
    prompt: Id,
    undo: Annotated[bool, typer.Option("--undo", help="Show the prompt in lists again.")] = False,
) -> None:
    """Hide a prompt from lists. Requests that name it are answered as before."""
    changed = options.server.post(f"/prompts/{prompt}/{'unarchive' if undo else 'archive'}")
    options.show(changed, f"{changed['id']} {'is listed again' if undo else 'archived'}")


@app.command()
def diff(
    options: ServerOptions,
    prompt: Id,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The number of a version, or a label.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The number of another version, or a label.")],
) -> None:
    """Show what differs between two versions of a prompt."""
    versions = [_version(options, prompt, reference) for reference in (old, new)]
    before, after = ("\n".join(_lines(shown)).split("\n") for shown in versions)
    old_name, new_name = (f"version {shown['version']}" for shown in versions)
    lines = list(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))
    options.show({"old": versions[0], "new": versions[1], "diff": lines}, *(lines or ["no difference"]))


def _version(options: ServerOptions, prompt: str, reference: str | None) -> dict[str, Any]:
    if reference is not None:
        return options.server.get(f"/prompts/{prompt}/versions/{reference}")
    shown: dict[str, Any] = options.server.get(f"/prompts/{prompt}")["version"]
    return shown


def _content(file: Path | None, **given: str | None) -> dict[str, Any]:
    """Return the body of a create: the fields of the file, and over them those given. The server validates it."""
    content = {} if file is None else read_json(file)
    if not isinstance(content, dict):
        raise CliError(f"{file} is no JSON object")
    return content | {name: value for name, value in given.items() if value is not None}


def _read_label(text: str) -> tuple[str, str | None]:
    name, equals, number = text.partition("=")
    if not equals:
        raise CliError(f"--label {text}: write LABEL=VERSION, or LABEL= to remove the label")
    return name, number or None


def _lines(shown: dict[str, Any]) -> list[str]:
    """Return the fields of a content that are set, texts as they are and the rest as JSON."""
    lines = []
    for name in _CONTENT:
        value = shown[name]
        if name == "messages":
            for message in value:
                lines += [f"{message['role']}:", _text(message["content"])]
        elif value not in (None, [], {}):
            lines += [f"{name}:", _text(value)]
    return lines


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _labels(prompt: dict[str, Any]) -> str:
    return ", ".join(f"{name}={number}" for name, number in prompt["labels"].items()) or "-"


def _row(prompt: dict[str, Any]) -> tuple[object, ...]:
    columns = (prompt["default_version"], prompt["latest_version"], _labels(prompt), prompt["version"]["model"] or "-")
    return prompt["id"], prompt["name"] or "-", *columns, moment(prompt["created_at"])

"""Write the reference pages from the code: settings, commands, routes, the SDK's methods and fields, and graders.

python docs/generate.py              docs/reference/*.md is written anew; a test compares the pages with the code
"""

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
from openai._resource import SyncAPIResource
from starlette.routing import WebSocketRoute
from typer.main import get_command

from api import openapi
from api.app import ROUTERS
from cli.main import app as command_line
from cli.options import ApiKey, AsJson, DataDir, Url
from docs.sdk_fields import MEANINGS, RESOURCES, Resource
from jobs.evals.graders import TYPES
from jobs.settings import Settings

FOLDER = Path(__file__).parent / "reference"
_HEAD = "<!-- Written by docs/generate.py from the code. Change the code instead. -->\n\n"
_REQUEST = re.compile(r'self\._(get|post|delete|put|patch|get_api_list)\(\s*(?:path_template\(\s*)?f?"([^"]+)"')
_WEBSOCKET = "WebSocket"
#: Options that have the same meaning in each command that has them, by their help. The page explains them once.
_SHARED = [option.__metadata__[0].help for option in (Url, ApiKey, DataDir, AsJson)]
_COMMANDS = """# Commands

`-h` after any command shows its help. `nightmill --install-completion` lets your shell complete commands, options and
their values.

**Output.** A command prints text for people. With `--json` it prints JSON Lines: one object on one line, or of a list
one object for each entry. What a command says beside its result goes to standard error.

**Exit code.** 0 after success, 1 after a failure, 2 for options or arguments that are wrong, 130 after Ctrl-C.

**Which server.** Commands with `--url` ask a server, by the first of these that applies:

1. `--url` and `--api-key`, or `NIGHTMILL_URL` and `NIGHTMILL_API_KEY`; where none of them and no data folder is
   given, `OPENAI_BASE_URL` and `OPENAI_API_KEY`. A key of Nightmill's in the other variables is not sent to
   `OPENAI_BASE_URL`, and a key in `OPENAI_API_KEY` that is not Nightmill's is sent to nothing else.
2. The deployment that `nightmill up` runs on the data folder: its `run.json` has URL and key. The key is sent to no
   other server.
3. The server that `NIGHTMILL_HOST`, `NIGHTMILL_PORT` or `NIGHTMILL_PUBLIC_URL` names, with the `operator.key` of the
   data folder.

All other commands work on the database and the files of the deployment and need its settings: on its host the data
folder and the variables of its processes, in containers for example `docker compose exec web nightmill workers`.

**Which data folder.** `--data-dir` or `NIGHTMILL_DATA_DIR`. Without them `up` takes `.nightmill` in the current folder,
and other commands take the first deployment that runs: that folder's, or else the one that you started last
(`~/.local/state/nightmill/deployments.json`, or below `XDG_STATE_HOME`, lists them).

"""
#: Why the methods of a resource are not served; each resource of which a method is not served needs a reason.
_NOT_SERVED = {
    "admin": "Keys and audit logs of a project are at `/v1/api_keys` and `/v1/audit_logs`; commands manage projects.",
    "audio": "No engine here takes or makes sound.",
    "beta": "Assistants, threads and agents are OpenAI's own products; use responses and conversations.",
    "containers": "Code of a model is not run here.",
    "content_provenance_checks": "A service of OpenAI about its own models.",
    "decisions": "A service of OpenAI about its own models.",
    "images": "No engine here makes pictures.",
    "live": "There is no voice; use a stream of a response.",
    "moderations": "There is no moderation model; ask a model of your choice in a batch.",
    "realtime": "There is no voice; use a stream of a response.",
    "safety": "A service of OpenAI about its own models.",
    "skills": "Code of a model is not run here.",
    "videos": "No engine here makes videos.",
}
_MEDIA = "Pictures and files by URL are refused, unless the project has `--allow-media-urls`."
#: What a served method does differently.
_DIFFERS = {
    "batches.create": "`completion_window` is any duration or `null`; `after`, `priority` and more are taken.",
    "chat.completions.create": f"{_MEDIA} Sound, searches of the web and `functions` are refused.",
    "completions.create": "`echo` with `logprobs` scores at most 16 prompts and generates at most 16 tokens.",
    "evals.create": "Without a `name` it is `Untitled`.",
    "evals.runs.create": "`sampling_params.n` takes several samples; sources `retrieval` and `perplexity` are ours.",
    "evals.runs.output_items.list": "`status` may also be `error`: errored items are neither passed nor failed.",
    "embeddings.create": "Token ids are read by the model's tokenizer, unless the model's name is one of OpenAI's.",
    "files.create": "A batch's input is checked by the batch, which fails with the numbers of the lines.",
    "files.delete": "A file that fine-tuning needs is 409 `file_in_use`, unless `erase` is true.",
    "fine_tuning.jobs.create": "`method` is `supervised` or `dpo`, not `reinforcement`; `peft` and more are taken.",
    "models.delete": "Deletes a model that the project has made; those of `models.yaml` stay.",
    "responses.create": f"The tools are `function` and `file_search`. {_MEDIA} `prompt` is refused.",
    "responses.connect": "`response.steer` is refused: a response ends before the next one goes on from it.",
    "responses.compact": "The compaction is readable by this server alone.",
    "vector_stores.search": "Scores are of the re-ranker, or cosines that common words raise. `include` adds fields.",
}


def settings_page() -> str:
    """Return every setting with its default, as `Settings` declares them."""
    groups = "\n".join(_settings_group(group) for group in Settings.__bases__[:-1])
    return (
        "# Settings\n\n"
        "Each setting is an environment variable, or a file whose path is in the variable with `_FILE` appended.\n"
        "Times are seconds and sizes are bytes unless the name says otherwise.\n\n"
        "Any other name that begins with `NIGHTMILL_` stops a process, with the name that was probably meant.\n"
        "Kubernetes makes such names for a service called `nightmill`: set `enableServiceLinks: false` there,\n"
        "or call the service otherwise.\n\n"
        f"{groups}"
    )


def _settings_group(group: Any) -> str:
    """Return the heading and the table of the settings of one subject."""
    rows = "".join(f"{row}\n" for row in _setting_rows(group))
    return f"## {group.__doc__}\n\n| variable | default | meaning |\n|---|---|---|\n{rows}"


def _setting_rows(group: Any) -> Iterator[str]:
    """Yield a row of the table for each setting of a group."""
    for name, field in group.model_fields.items():
        default = f"`{_value(field.default)}`" if field.default not in ("", ()) else ""
        yield f"| `NIGHTMILL_{name.upper()}` | {default} | {field.description} |"


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(f"{part:g}" if part < 1e5 else str(int(part)) for part in default)
    return str(default)


def commands_page() -> str:
    """Return every command with its arguments and options."""
    root = get_command(command_line)
    shared: dict[str, str] = {}
    body = "\n".join(line for command in _commands(root, "nightmill") for line in _section(*command, shared))
    rows = "\n".join(shared[text] for text in _SHARED)
    return f"{_COMMANDS}| option | meaning |\n|---|---|\n{rows}\n\n{body}"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _section(path: str, command: Any, shared: dict[str, str]) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    shared.update((option.help, _row(option)) for option in options if option.help in _SHARED)
    own = [option for option in options if option.help not in _SHARED]
    yield f"## `{' '.join([path, *map(_name, arguments)])}`\n"
    yield re.sub(r"\s+", " ", command.help.replace("\n\n", " ")) + "\n"
    if arguments or own:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{_name(one)}` | {_cell(one.help)} |" for one in arguments)
        yield from map(_row, own)
        yield ""
    same = [f"`{option.opts[0]}`" for option in options if option.help in _SHARED]
    yield f"Also {', '.join(same)}.\n" if same else ""


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = option.default if not callable(option.default) else None
    shown = f" Default: `{default}`." if default not in (None, "", False, True, [], ()) else ""
    variable = f" Also `{option.envvar}`." if option.envvar else ""
    return f"| {names} | {_cell(option.help)}{shown}{variable} |"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def routes_page(document: dict[str, Any]) -> str:
    """Return every route of the OpenAPI document, with the fields of its body or its query."""
    tags: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            [tag] = operation["tags"]
            tags.setdefault(tag, []).append(_operation(document, method.upper(), path, operation))
    sections = "\n".join(f"## {tag}\n\n" + "\n".join(operations) for tag, operations in tags.items())
    return (
        "# HTTP API\n\n"
        "Every route but `/livez`, `/readyz` and `/statusz` wants `Authorization: Bearer KEY`.\n"
        "Every `POST` that creates takes `Idempotency-Key`.\n"
        "`/openapi.json` has the whole of what follows, with all types.\n\n" + sections
    )


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    text = inspect.cleandoc(operation.get("description") or operation["summary"])
    query = [(one["name"], one.get("description")) for one in operation.get("parameters", ()) if one["in"] == "query"]
    fields = [*query, *_body_fields(document, operation)]
    rows = "".join(f"| `{name}` | {_cell(description)} |\n" for name, description in fields)
    table = f"\n| field | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"### `{method} {path}`\n\n{text}\n{table}"


def _body_fields(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        if reference := schema.get("$ref"):
            schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        for name, field in schema.get("properties", {}).items():
            yield name, field.get("description")


def compatibility_page(document: dict[str, Any]) -> str:
    """Return the SDK's methods: those that are served, with what differs, and why the others are not."""
    routes = {(method, _shape(path)) for path, methods in document["paths"].items() for method in methods}
    all_routes = [route for router in ROUTERS for route in router.routes]
    routes |= {(_WEBSOCKET, route.path) for route in all_routes if isinstance(route, WebSocketRoute)}
    served: list[str] = []
    missing: dict[str, list[str]] = {}
    for name, method, path in sdk_methods():
        if (method, _shape(f"/v1{path}")) in routes:
            verb = method if method == _WEBSOCKET else method.upper()
            served.append(f"| `{name}` | `{verb} /v1{path}` | {_DIFFERS.get(name, '')} |\n")
        else:
            missing.setdefault(name.split(".")[0], []).append(name)
    rows = "".join(f"| `{key}` | {len(names)} | {_NOT_SERVED[key]} |\n" for key, names in sorted(missing.items()))
    return (
        "# Compatibility with the OpenAI SDK\n\n"
        f"Every method of `openai` {openai.__version__} for Python that sends one request or opens a WebSocket.\n"
        "Helpers such as `create_and_poll`, `parse` or `upload_file_chunked` work wherever the methods that they call\n"
        "are served.\n\n"
        f"## Served\n\n{len(served)} methods.\n\n| method | route | differently |\n|---|---|---|\n{''.join(served)}\n"
        f"## Not served\n\nThey answer 404 `unknown_url`.\n\n| resource | methods | why |\n|---|---:|---|\n{rows}"
    )


def fields_page() -> str:
    """Return the fields that the SDK sends, and what becomes of each, by engine."""
    meanings = "".join(f"| {outcome} | {meaning} |\n" for outcome, meaning in MEANINGS.items())
    return (
        "# Fields of the SDK\n\n"
        f"What becomes of each field that `openai` {openai.__version__} for Python sends. A test sends each of them.\n"
        "`vllm` and `embed` run in a worker; `http` is a model behind a URL, whatever serves it. `tools: function` is\n"
        "the field `tools` with an object of the type `function`. What else a body may have is in\n"
        f"[](../guides/fields.md).\n\n| outcome | meaning |\n|---|---|\n{meanings}\n"
        + "\n".join(map(_resource_fields, RESOURCES))
    )


def _resource_fields(resource: Resource) -> str:
    """Return the heading and the table of one method."""
    rows = (
        f"| `{name}` | {' | '.join(outcomes * (len(resource.engines) // len(outcomes)))} |\n"
        for name, (_, *outcomes) in resource.fields.items()
    )
    heads = [f"`{engine}`" if engine else "outcome" for engine in resource.engines]
    line = "---|" * len(heads)
    return f"## `{resource.method}`\n\n| field | {' | '.join(heads)} |\n|---|{line}\n{''.join(rows)}"


def graders_page() -> str:
    """Return every type of grader with its fields and limits."""
    head = "| type | what it does | score | fields | limits |\n|---|---|---|---|---|\n"
    return (
        "# Types of graders\n\n"
        "Fields in brackets may be left out. Every grader has a `name` too. The guide says\n"
        f"[how they work](../guides/graders.md).\n\n## OpenAI's\n\n{head}{''.join(_grader_rows(is_openai=True))}\n"
        f"## Beyond OpenAI's\n\n{head}{''.join(_grader_rows(is_openai=False))}"
    )


def _grader_rows(*, is_openai: bool) -> Iterator[str]:
    for kind, grader in TYPES.items():
        if grader.is_openai == is_openai:
            fields = [
                f"`{field.alias or name}`" if field.is_required() else f"[`{name}`]"
                for name, field in grader.model_fields.items()
                if name not in ("name", "type")
            ]
            text = inspect.cleandoc(grader.__doc__ or "").split("\n\n")[0]
            cells = (f"`{kind}`", text, grader.scores, ", ".join(fields), grader.limits)
            yield f"| {' | '.join(map(_cell, cells))} |\n"


def sdk_methods() -> Iterator[tuple[str, str, str]]:
    """Yield name, HTTP method and path of each method of the SDK that sends one request or opens a WebSocket."""
    methods = _methods(openai.OpenAI(api_key="-", admin_api_key="-"), "")
    yield from (method for method in methods if not method[0].startswith("beta.chat."))  # the same as chat.


def _methods(resource: Any, name: str) -> Iterator[tuple[str, str, str]]:
    for word in dir(type(resource)):
        member = inspect.getattr_static(type(resource), word)
        if word.startswith(("_", "with_")):
            continue
        if isinstance(member, cached_property | property):
            child = getattr(resource, word)
            if isinstance(child, SyncAPIResource):
                yield from _methods(child, f"{name}{word}.")
        elif inspect.isfunction(member) and name:
            source = inspect.getsource(inspect.unwrap(member))
            if word == "connect":
                yield f"{name}{word}", _WEBSOCKET, f"/{name[:-1].replace('.', '/')}"
            elif sent := _REQUEST.search(source):
                listed = "post" if 'method="post"' in source else "get"
                yield f"{name}{word}", listed if sent[1] == "get_api_list" else sent[1], sent[2]


def _shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    document = openapi.document()
    made = {
        "settings.md": settings_page(),
        "commands.md": commands_page(),
        "api.md": routes_page(document),
        "compatibility.md": compatibility_page(document),
        "fields.md": fields_page(),
        "graders.md": graders_page(),
    }
    return {name: f"{_HEAD}{text.rstrip()}\n" for name, text in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)

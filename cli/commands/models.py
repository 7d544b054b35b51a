"""`nightmill models`: list the models of this deployment, and change its models file.

The models file is that of this host. With `--mine` the server is asked, with a key of a project, and so from another
machine too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CliError
from cli.groups import Group
from cli.options import HostOptions, OperatorOptions, ServerOptions
from cli.terminal import say, show_json, show_table
from jobs.queues import command_for
from jobs.requests.endpoints import EMBEDDINGS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jobs.fleet.models_file import ModelConfig
    from jobs.fleet.tables import Model as Shown
    from jobs.settings import Settings

app = Group("List, add, download and remove the models of a models.yaml.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that clients write in `model`.")]


@app.command("list")
def list_(
    options: ServerOptions,
    own: Annotated[
        bool, typer.Option("--mine", help="That your key may ask for, tuned ones and aliases too, by its server.")
    ] = False,
) -> None:
    """Show the models, where they come from, their states, and how many workers serve each now."""
    if own:
        entries = options.server.get("/models", {"include": "serving"})["data"]
        options.show_entries(entries, ("model", "answered by", "queue", "state", "workers"), _own_row)
        return
    from sqlalchemy import select

    from cli.up.effective import opened, running
    from jobs.fleet.models_file import Registry
    from jobs.fleet.tables import Model as Shown

    config = running(options.data_dir)
    registry = Registry.load(config)
    rows = [_row(model) | {"workers": 0, "state": "no worker"} for model in registry.models.values()]
    if (config.data_dir / "nightmill.db").exists() or config.database_url:
        with opened(options.data_dir) as db, db.read() as session:
            shown = session.scalars(select(Shown).order_by(Shown.id)).all()
            rows += [_endpoint_row(model) for model in shown if registry.resolve(model.id) is None]
            _add_states(session, rows)
    if options.as_json:
        show_json(rows)
        return
    prompts = any(_prompts_cell(row) for row in rows)
    names = ("model", "engine", "source", "queue", "state", "workers", "aliases")
    cells = []
    for row in rows:
        columns = [row[name] for name in ("name", "engine", "source", "queue", "state", "workers")]
        cells.append((*columns, " ".join(row["aliases"]), *([_prompts_cell(row)] if prompts else [])))
    show_table((*names, *(["prompts: query / passage"] if prompts else [])), cells)
    say(f"file: {registry.file}")


@app.command()
def add(
    options: HostOptions,
    name: Name,
    path: Annotated[Path | None, typer.Option(help="A local folder with the model.")] = None,
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="A repository of the Hugging Face hub.")] = "",
    revision: Annotated[
        str, typer.Option(help="The commit of the repository. Else the newest, which is then fixed.")
    ] = "",
    url: Annotated[list[str] | None, typer.Option(help="An OpenAI-compatible server; may be repeated.")] = None,
    upstream: Annotated[str, typer.Option(help="The name of the model on these servers, if it is not NAME.")] = "",
    api_key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the key of these servers.")
    ] = "",
    engine: Annotated[str, typer.Option(help="vllm, embed, rerank or http; by default vllm, or http for URLs.")] = "",
    queue: Annotated[str, typer.Option(help="The queue that serves it, such as gpu.large.")] = "",
    alias: Annotated[list[str] | None, typer.Option(help="Another name for the model; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An engine argument, as models.yaml has it.")
    ] = None,
) -> None:
    """Add a model to the models file.

    Running processes see the model within seconds. A server (--url) is asked at once; one that cannot be reached is
    added all the same, with a warning, and asked again and again. For a model that runs in a
    worker, the worker returns its work and is restarted. A second model of vLLM gets a queue of its own,
    because a process holds one; `nightmill up` starts a process for each queue of the file.
    """
    from cli.client.hub import newest
    from cli.commands.models_editor import append_model, editable, own_queue
    from cli.up.effective import running
    from jobs.fleet.models_file import Registry

    config = running(options.data_dir)
    if revision and not repo:
        raise CliError("--revision names a commit of a --repo")
    if path is None and not repo and not url:
        raise CliError("say where the model comes from: a folder (--path), a repository (--repo) or a server (--url)")
    source = _drop_empty(
        path=str(path.absolute()) if path else "",
        repo=repo,
        revision=revision or (repo and newest(repo)),
        urls=url,
        model=upstream,
        api_key_env=api_key_env,
    )
    file, engine = editable(config.models_file, config.data_dir), engine or ("http" if url else "vllm")
    queue = own_queue(file, name, queue) if engine == "vllm" else queue
    more = _drop_empty(queue=queue, engine_args=_parse_arguments(set_ or []), aliases=alias)
    append_model(file, name, {"source": source, "engine": engine, **more})
    added = Registry.read(file.path).models[name]
    faults = _faults(url or (), api_key_env, upstream or name)
    result = {"name": name, "file": str(file.path), "queue": added.queue, "faults": faults}
    options.show(result, f"{name} added to {file.path}", *_describe_process(config, added))
    for fault in () if options.as_json else faults:
        say(f"warning: {fault}", err=True)


@app.command()
def pull(options: HostOptions, name: Name) -> None:
    """Download the files of a model from the hub. A gated model needs HF_TOKEN in the environment."""
    from cli.client.hub import download
    from cli.up.effective import running
    from jobs.fleet.models_file import Registry

    model = Registry.load(running(options.data_dir)).resolve(name)
    if model is None:
        raise CliError(f"there is no model '{name}'; `nightmill models list` shows them")
    if not model.source.repo:
        raise CliError(f"{model.name} does not come from the hub but from {_source_text(model.source.model_dump())}")
    path = download(model.source.repo, str(model.source.revision))
    options.show({"name": model.name, "path": path}, path)


@app.command()
def remove(options: HostOptions, name: Name) -> None:
    """Remove a model from the models file. The files of the model stay where they are."""
    from cli.commands.models_editor import cut_model, editable
    from cli.up.effective import running

    config = running(options.data_dir)
    file = editable(config.models_file, config.data_dir)
    cut_model(file, name)
    options.show({"name": name, "file": str(file.path)}, f"{name} removed from {file.path}")


@app.command()
def probe(
    options: OperatorOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a tuned model, ft:….")],
    accept: Annotated[bool, typer.Option("--accept", help="Serve it whatever its probe says.")] = False,
) -> None:
    """Have a tuned model that failed its probe compared with its trainer again, or accept it as it is."""
    decided = options.deployment.decide_probe(name, accept=accept)
    what = "is served whatever its probe says" if accept else "is probed when it is loaded next"
    options.show(decided, f"{name} {what}")


def _own_row(model: dict[str, Any]) -> Sequence[object]:
    """Return the cells of a model as the server lists it."""
    serving = model.get("serving") or {}
    state = str(serving.get("reason") or serving.get("state", "-"))
    return (model["id"], *(serving.get(name, "-") for name in ("model", "queue")), state, serving.get("workers", "-"))


def _row(model: "ModelConfig") -> dict[str, Any]:
    return {
        "name": model.name,
        "engine": model.engine.value,
        "source": _source_text(model.source.model_dump(exclude_none=True)),
        "queue": model.queue,
        "external": model.external,
        "aliases": list(model.aliases),
        **_prompts(model),
    }


def _endpoint_row(model: "Shown") -> dict[str, Any]:
    """Return the row of a model that the servers of NIGHTMILL_ENGINE_URLS listed."""
    return {
        "name": model.id,
        "engine": "http",
        "source": "NIGHTMILL_ENGINE_URLS",
        "queue": model.queue,
        "external": model.external,
        "aliases": [],
        "query_prompt": None,
        "passage_prompt": None,
    }


def _faults(urls: Iterable[str], key_name: str, model: str) -> list[str]:
    """Return what keeps each server from answering for `model`, one sentence each."""
    from pydantic_settings import SettingsError

    from cli.client import upstream
    from jobs.platform.secret_files import secret

    try:
        key = secret(key_name) if key_name else ""
    except SettingsError as error:
        return [str(error)]
    faults = [(url, upstream.fault(url, key, model)) for url in urls]
    return [f"{url} {fault}" for url, fault in faults if fault]


def _drop_empty(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value}


def _describe_process(config: "Settings", model: "ModelConfig") -> list[str]:
    """Say what starts the process of a model's queue, unless a process of the Procfile serves the queue."""
    from cli.up import procfile
    from cli.up.folder import DataFolder

    run, queue = DataFolder(config.data_dir).live_run(), model.queue
    names = {process["name"] for process in run.get("processes", ())}
    if queue in map(procfile.queue_of, procfile.load(procfile.PACKAGED)) or queue in names:
        return []
    if run.get("adds_models"):
        return [f"a process of its own, {queue}, starts in a moment: `nightmill status` shows it"]
    if run:
        line = f"{queue.replace('.', '-')}: {command_for(queue, embeds=model.engine.embeds)}"
        return [f"nothing serves its queue: the Procfile in use needs a line such as `{line}`, and a new start"]
    return [f"`nightmill up` starts a process of its own for it, {queue}"]


def _add_states(session: "Session", rows: Iterable[dict[str, Any]]) -> None:
    """Add to each row how many workers serve the model now, and its state."""
    from cli.wording import model_progress
    from jobs.fleet import serving
    from jobs.fleet.models_file import EngineKind

    rows = list(rows)
    states = serving.states(
        session, [serving.Needed(row["name"], row["queue"], EngineKind(row["engine"])) for row in rows]
    )
    for row in rows:
        known = states[row["name"]]
        row["workers"] = known.workers
        row["state"] = model_progress(asdict(known.loading)) if known.loading else known.state.replace("_", " ")


def _prompts(model: "ModelConfig") -> dict[str, str | None]:
    """Return the prompts that precede queries and passages, for a model that embeds."""
    from jobs.fleet.checkpoint import facts_of

    if EMBEDDINGS not in model.endpoints:
        return {"query_prompt": None, "passage_prompt": None}
    prompts = facts_of(model).prompts
    return {"query_prompt": prompts.query or None, "passage_prompt": prompts.passage or None}


def _prompts_cell(row: Mapping[str, Any]) -> str:
    both = (row["query_prompt"], row["passage_prompt"])
    return " / ".join(repr(prompt or "") for prompt in both) if any(both) else ""


def _parse_arguments(pairs: list[str]) -> dict[str, Any]:
    import yaml

    from jobs.fleet.models_file import NO_YAML

    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CliError(f"'{pair}' is no engine argument; write it as name=value")
        try:
            arguments[name] = yaml.safe_load(value)
        except NO_YAML:
            raise CliError(f"'{pair}' is no engine argument: its value is no YAML") from None
    return arguments


def _source_text(source: dict[str, Any]) -> str:
    if source.get("repo"):
        return f"{source['repo']}@{source['revision'][:12]}"
    urls = source.get("urls") or ()
    return str(source.get("path") or " ".join(urls) or f"packaged {source.get('packaged')}")

"""`nightmill run-batch`: the files and flags of vLLM's own batch runner, `vllm run-batch`.

    attached    a deployment runs here (or --url names one): the file becomes a batch of that deployment
    private     none runs: start one for this run in a temporary folder, with one model and the other flags
                as engine arguments; lines may have vLLM's own sampling fields

All results are in one file, in the order of the input, as `vllm run-batch` writes them.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.client.progress import Snapshot, fault, follow
from cli.client.server import Server, connect, named
from cli.errors import CliError
from cli.options import DataDir
from cli.output_files import require_writable, whole
from cli.terminal import say

if TYPE_CHECKING:
    from cli.client.server import Server
    from jobs.fleet.models_file import Model, Registry

_LONGEST, _USUAL = "30d", "24h"
#: A private run shares nothing, so it needs no limits.
_NO_LIMITS = {
    "NIGHTMILL_BATCH_MAX_LINES": "100000000",
    "NIGHTMILL_BATCH_MAX_BYTES": str(1 << 40),
    "NIGHTMILL_FILE_MAX_BYTES": str(1 << 40),
    "NIGHTMILL_BATCH_MAX_EMBEDDING_INPUTS": "100000000",
    "NIGHTMILL_PROJECT_MAX_QUEUED_TOKENS": "0",
    "NIGHTMILL_WINDOW_MIN_SECONDS": "60",
    "NIGHTMILL_WINDOW_MAX_SECONDS": str(30 * 86_400),
    "NIGHTMILL_MODELS_FILE": "",
    "NIGHTMILL_ENGINE_URLS": "",
    "NIGHTMILL_VLLM_ENABLED": "true",  # also where the environment disables vLLM
}
_ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
_LINES = ("release", "web", "dispatcher", "cpu")


def run_batch(
    context: typer.Context,
    input_file: Annotated[Path, typer.Option("-i", "--input-file", help="Requests, one a line, as for a batch.")],
    output_file: Annotated[Path, typer.Option("-o", "--output-file", help="The file for all results.")],
    model: Annotated[str, typer.Option(help="A name of the models file, a folder, or ORG/NAME of the hub.")],
    url: Annotated[
        str | None,
        typer.Option(envvar="NIGHTMILL_URL", help="A deployment to use, without /v1; vLLM's --url is another thing."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="NIGHTMILL_API_KEY",
            show_default=False,
            help="Your key for a deployment. Else as in run.json; an engine of this run takes none.",
        ),
    ] = None,
    output_tmp_dir: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The folder for results until the run has ended.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="The time allowed, such as 6h or 7d. Else 24h on a deployment, 30d with an engine of this run.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run a file as `vllm run-batch` does. Other flags go to vLLM, in an engine that is started for this run."""
    from cli.client.submission import first_request
    from jobs.batches.joining import paired

    for path in (input_file, output_file):
        if path.parts[:1] in (("http:",), ("https:",)):
            raise CliError(f"{path.parts[0]}//…: a path is taken, not a URL; fetch or send the file by another program")
    require_writable(output_file)
    endpoint, requested = first_request(input_file)
    with ExitStack() as stack:
        server, check = stack.enter_context(_server(context, model, url, api_key, data_dir))
        if check is None and isinstance(requested, str) and requested != model:
            raise CliError(
                f"{input_file}, line 1 asks for the model '{requested}', not for '{model}'; name that one instead"
            )
        options = {"endpoint": endpoint, "completion_window": window or (_LONGEST if check else _USUAL)}
        job = _run(server, input_file, check or (lambda: None), options)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=output_tmp_dir)))
        results = [_fetched(server, file_id, folder) for file_id in (job.output_file_id, job.error_file_id)]
        opened: list[Iterable[bytes]] = [
            stack.enter_context(path.open("rb")) if path else [] for path in (input_file, *results)
        ]
        with whole(output_file) as out:
            out.writelines(line for _, line in paired(*opened))
    say(f"{output_file}: {job.done} results, {job.failed} of them failed", err=True)


def _run(server: Server, input_file: Path, check: Callable[[], None], options: dict[str, str]) -> Snapshot:

    file_id = server.upload(input_file)
    batch = server.post("/batches", {"input_file_id": file_id, **options})
    say(batch["id"], err=True)
    job = follow(server, batch["id"], check)
    for error in job.errors[:20]:
        say(fault(error), err=True)
    if job.state != "succeeded":
        raise CliError(f"{job.id} {job.state}")
    return job


def _fetched(server: Server, file_id: str | None, folder: Path) -> Path | None:
    if file_id:
        server.download(file_id, folder / file_id)
    return folder / file_id if file_id else None


@contextmanager
def _server(
    context: typer.Context, model: str, url: str | None, api_key: str | None, data_dir: Path | None
) -> Iterator[tuple[Server, Callable[[], None] | None]]:
    """Yield the server to use and, for a private deployment, a function that raises when it cannot go on."""
    from cli.up.effective import effective
    from cli.up.folder import DataFolder

    flags, folder = context.args, DataFolder(effective(data_dir=data_dir).data_dir)
    if named(url, api_key, data_dir)[0] or folder.live_run():
        if flags:
            raise CliError(f"{' '.join(flags)}: the deployment has its engines already; stop it, or leave these out")
        with connect(url, api_key, data_dir) as server:
            served = {model["id"] for model in server.get("/models")["data"]}
            if model not in served:
                raise CliError(f"the deployment does not serve '{model}'; it serves {', '.join(sorted(served))}")
            yield server, None
        return
    source = context.get_parameter_source("api_key")
    if source is not None and source.name == "COMMANDLINE":  # a key in the environment may belong to another server
        raise CliError(f"--api-key: nothing runs in {folder.path} that takes a key; name a deployment with --url")
    with _private(model, flags, data_dir) as private:
        yield private


@contextmanager
def _private(model: str, flags: list[str], data_dir: Path | None) -> Iterator[tuple[Server, Callable[[], None]]]:
    """Yield a server with one model, and remove it afterwards."""
    import yaml

    from cli.client.server import Server
    from cli.demo import system
    from cli.up.effective import effective
    from cli.up.procfile import PACKAGED
    from jobs.fleet.models_file import Registry

    with tempfile.TemporaryDirectory(prefix="nightmill-run-batch-") as name:
        folder = Path(name)
        fields = _fields(Registry.load(effective(data_dir=data_dir, vllm_enabled=True)), model, flags)
        (folder / "models.yaml").write_text(yaml.safe_dump({"models": fields}))
        pools = (*_LINES, *("gpu" if entry["engine"] == "vllm" else "embed" for entry in fields.values()))
        lines = [line for line in PACKAGED.read_text().splitlines() if line.startswith(pools)]
        (folder / "Procfile").write_text("\n".join(lines) + "\n")
        options = ["--models", str(folder / "models.yaml"), "--procfile", str(folder / "Procfile")]
        options += ["--unlisted"]
        with system.running(folder / "data", options, _NO_LIMITS) as up:
            up.wait_until_ready()
            say(f"started an engine for {model}; it takes requests when it has loaded", err=True)
            with Server(up.url, up.api_key) as server:
                yield server, up.check


def _fields(registry: "Registry", model: str, flags: list[str]) -> dict[str, dict[str, Any]]:
    """Return the `models` of a models file: this model, under the names that requests use."""
    from cli.commands.vllm_flags import engine_args, refuse

    arguments = absolute(engine_args(flags))
    refuse(arguments)
    names = arguments.pop("served_model_name", model)
    name, *others = map(str, names if isinstance(names, list) else [names])
    return {name: {**_model(registry, model, arguments), "aliases": others}}


def _model(registry: "Registry", name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a model of the models file in force, of a folder, or of a repository of the hub.

    Raises:
        CliError: the engine of the model does not take these arguments.
    """
    from cli.client.hub import newest

    known = registry.resolve(name)
    if known is not None:
        return _known(known, arguments)
    revision = arguments.pop("revision", None)
    if Path(name).is_dir():
        source: dict[str, Any] = {"path": str(Path(name).absolute())}
    else:
        source = {"repo": name, "revision": revision or newest(name)}
    return {"source": source, "engine": "vllm", "endpoints": _ROUTES, "engine_args": arguments}


def _known(model: "Model", arguments: dict[str, Any]) -> dict[str, Any]:
    from cli.commands.vllm_flags import merged
    from jobs.fleet.models_file import EngineKind

    if model.engine is EngineKind.HTTP:
        raise CliError(
            f"'{model.name}' is served by {' '.join(model.source.urls)}; start `nightmill up`, and try again"
        )
    if arguments and model.engine is not EngineKind.VLLM:
        raise CliError(f"{', '.join(arguments)}: '{model.name}' has the engine {model.engine.value}, not vLLM")
    source = model.source.model_dump(mode="json", exclude_unset=True)
    if model.source.repo:
        source["revision"] = arguments.pop("revision", model.source.revision)
    fields = model.model_dump(mode="json", include={"engine", "endpoints", "max_model_len"}, exclude_none=True)
    return {**fields, "source": source, "engine_args": merged(model.engine_args, arguments)}


_BARE = frozenset({
    "allowed_local_media_path", "chat_template", "generation_config", "hf_config_path", "model", "spec_model",
    "tokenizer",
})  # fmt: skip
_RESERVED = frozenset({"auto", "vllm"})  # words with a meaning of their own in `--generation-config`
_WRITTEN = ("_dir", "_dump_path", "_save_path")  # the engine creates these paths
_NEVER = frozenset({"allowed_media_domains", "ignore_patterns", "served_model_name"})  # values that are never paths


def absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with paths below this folder made absolute, also inside objects."""
    return {name: value if name in _NEVER else _escaped(name, value) for name, value in arguments.items()}


def _escaped(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(key, member) for key, member in value.items()}
    if isinstance(value, list):
        return [_escaped(name, member) for member in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{"):
        return _object(value)
    return str(Path(value).absolute()) if _is_path(name, value) else value


def _object(word: str) -> str:
    """Return a JSON object with absolute paths, and a word without such paths unchanged."""
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        return word
    escaped = _escaped("", value)
    return word if escaped == value else json.dumps(escaped)


def _is_path(name: str, word: str) -> bool:
    if not word or "://" in word:
        return False
    if name.endswith(_WRITTEN):
        return True
    if "/" in word or (name in _BARE and word not in _RESERVED):
        return os.path.exists(word)  # noqa: PTH110 - a template in one line is too long a name for Path.exists
    return bool(Path(word).suffix) and os.path.isfile(word)  # noqa: PTH113 - likewise

"""`nightmill up`: run every process of the Procfile, and the embedded broker, on one data folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CliError

if TYPE_CHECKING:
    from cli.up.folder import DataFolder
    from cli.up.installation import Installation
    from cli.up.procfile import Line


def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder for the database, files, logs and keys. Also NIGHTMILL_DATA_DIR.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address of the API. Also NIGHTMILL_HOST.")] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The port of the API; 0 takes a free port. Flower takes the next. Also NIGHTMILL_PORT."),
    ] = None,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(help="Use an OpenAI-compatible server; may be repeated. Also NIGHTMILL_ENGINE_URLS."),
    ] = None,
    no_vllm: Annotated[
        bool, typer.Option("--no-vllm", help="Start no vLLM here. Also NIGHTMILL_VLLM_ENABLED=false.")
    ] = False,
    openai_aliases: Annotated[
        bool,
        typer.Option(
            "--openai-aliases",
            help="Let OpenAI's model names, such as gpt-4o-mini, name the models here. Also NIGHTMILL_OPENAI_ALIASES.",
        ),
    ] = False,
    models: Annotated[Path | None, typer.Option(help="The models.yaml to use. Also NIGHTMILL_MODELS_FILE.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of every process.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the API takes requests; `nightmill down` stops it.")
    ] = False,
    lines: Annotated[Path | None, typer.Option("--procfile", help="Run the processes of another Procfile.")] = None,
    optional: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME", help="Start an optional process too, such as tuned; may be repeated."),
    ] = None,
) -> None:
    """Start every process on this machine and keep them running until Ctrl-C or `nightmill down`."""
    from cli.up import procfile
    from cli.up.background import run_detached
    from cli.up.effective import for_up
    from cli.up.folder import DataFolder
    from cli.up.installation import Installation
    from cli.up.readiness import reachable_url

    if detach and verbose:
        raise CliError("--verbose shows nothing with --detach; `nightmill logs -f` does")
    config = for_up(data_dir, host, port, engine_url, no_vllm, models, openai_aliases=openai_aliases)
    folder = DataFolder(config.data_dir)
    os.umask(0o077)  # files here may contain prompts, answers and secrets
    folder.make()
    parsed = procfile.load(lines or procfile.PACKAGED, optional or ())
    root = lines.absolute().parent if lines else procfile.CODE

    def run() -> int:
        here = Installation(config, folder, root, os.getpid(), verbose, adds_models=lines is None)
        return _run(here, parsed, folder)

    raise typer.Exit(run_detached(folder, reachable_url(config.host, config.port), run) if detach else run())


def _run(here: "Installation", lines: "Sequence[Line]", folder: "DataFolder") -> int:
    """Supervise the processes until a signal ends it."""
    from cli.up import deployments
    from cli.up.guard import run_guarded

    lock = folder.lock()
    deployments.remember(folder)
    killed = folder.kill_leftovers()
    here.check()
    code = run_guarded(lambda guard: here.run(lines, guard, killed))
    folder.run_file.unlink(missing_ok=True)  # a killed supervisor leaves it behind
    lock.close()
    return code

"""`nightmill up`: every process of the Procfile, and the embedded broker, from one command and in one data folder."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli import procfile
from cli.folder import DataFolder
from cli.guard import guarded
from cli.installation import Installation, free_port, is_free
from cli.trouble import Trouble
from jobs.settings import Settings


def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of everything embedded. Also NIGHTMILL_DATA_DIR.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address the API binds. Also NIGHTMILL_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API; 0 takes a free one. Flower gets the next. Also NIGHTMILL_PORT.")
    ] = None,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(help="Attach an OpenAI-compatible server; any number of times. Also NIGHTMILL_ENGINE_URLS."),
    ] = None,
    no_vllm: Annotated[
        bool, typer.Option("--no-vllm", help="Start without vLLM in process. Also NIGHTMILL_VLLM_ENABLED=false.")
    ] = False,
    models: Annotated[Path | None, typer.Option(help="A models.yaml of your own. Also NIGHTMILL_MODELS_FILE.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what every process logs.")] = False,
    lines: Annotated[Path | None, typer.Option("--procfile", help="Run the lines of another Procfile.")] = None,
) -> None:
    """Start every process on this machine and keep them running until Ctrl-C."""
    config = _effective(data_dir=data_dir, host=host, port=port, engine_urls=engine_url, no_vllm=no_vllm, models=models)
    path = (lines or procfile.CHECKOUT / "Procfile").absolute()
    parsed = procfile.load(path)
    folder = DataFolder(config.data_dir)
    folder.make()
    lock = folder.lock()
    here = Installation(config, folder, path.parent, os.getpid(), verbose)
    killed = folder.kill_leftovers()
    here.check_ports()
    code = guarded(lambda guard: here.run(parsed, guard, killed))
    folder.run_file.unlink(missing_ok=True)  # a supervisor that was killed has left it
    lock.close()
    raise typer.Exit(code)


def _effective(
    *,
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    engine_urls: list[str] | None,
    no_vllm: bool,
    models: Path | None,
) -> Settings:
    """The settings of the environment, with what the command line says instead, and with ports that are chosen."""
    given: dict[str, Any] = {"data_dir": data_dir, "host": host, "port": port, "engine_urls": engine_urls}
    given["vllm_enabled"] = False if no_vllm else None
    given["models_file"] = str(models.absolute()) if models else None
    try:
        config = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Trouble("; ".join(f"{_name(one['loc'])}: {one['msg']}" for one in error.errors())) from error
    chosen = config.port or free_port(config.host)
    beside = config.flower_port or (chosen + 1 if is_free("127.0.0.1", chosen + 1) else free_port("127.0.0.1"))
    return config.model_copy(update={"data_dir": config.data_dir.absolute(), "port": chosen, "flower_port": beside})


def _name(location: tuple[int | str, ...]) -> str:
    return f"NIGHTMILL_{str(location[0]).upper()}" if location else "settings"

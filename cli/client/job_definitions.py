"""Definitions of jobs in files, as YAML or JSON, in which `{file: PATH}` stands for the id of a file to upload."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cli.client.server import Server
from cli.errors import CliError

#: The purpose of the files that each kind of job reads.
_PURPOSES: Final[Mapping[str, Any]] = {
    "batch": "batch",
    "fine_tuning": "fine-tune",
    "eval_run": "evals",
    "dataset": "user_data",
    "ingestion": "user_data",
    "promotion": "evals",
}


def read_definition(file: Path) -> dict[str, Any]:
    """Return the definition in a file, which is empty where the file has no fields. Raises CliError."""
    import yaml

    try:
        definition = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CliError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    return definition if isinstance(definition, dict) else {}


def is_pipeline(definition: Mapping[str, Any]) -> bool:
    """Return whether a definition is one of a pipeline: it has steps."""
    steps = definition.get("steps")
    return isinstance(steps, list) and all(isinstance(step, dict) for step in steps)


def upload_files(definition: dict[str, Any], folder: Path, server: Server) -> dict[str, Any]:
    """Return a definition with the id of an uploaded file in the place of each path. Paths count from `folder`.

    Raises: CliError, before anything is uploaded, for a path without a file.
    """
    missing = [str(path) for path in _paths(definition, folder) if not path.is_file()]
    if missing:
        raise CliError(f"{missing[0]} is no file; nothing was uploaded")
    if not is_pipeline(definition):
        return dict(_upload(definition, folder, server, _PURPOSES.get(str(definition.get("type")))))
    steps = [_upload(step, folder, server, _PURPOSES.get(str(step.get("kind")))) for step in definition["steps"]]
    return {**definition, "steps": steps}


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"file"} and isinstance(value["file"], str)


def _paths(value: Any, folder: Path) -> Iterator[Path]:
    """Yield the paths that a definition names as `{file: PATH}`."""
    if _is_file(value):
        yield folder / value["file"]
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _paths(member, folder)


def _upload(value: Any, folder: Path, server: Server, purpose: Any) -> Any:
    """Return a value with the id of an uploaded file in the place of each path."""
    if _is_file(value):
        return server.upload(folder / value["file"], purpose or "user_data")
    if isinstance(value, dict):
        return {name: _upload(member, folder, server, purpose) for name, member in value.items()}
    return [_upload(item, folder, server, purpose) for item in value] if isinstance(value, list) else value

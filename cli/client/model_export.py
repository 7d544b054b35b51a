"""Export a tuned model: its files from the server, checked by hash, and merged into the base where that is asked for.

files, SHA-256 ─▶ OUTPUT.part ── each hash is right ──┬─▶ OUTPUT
                                                      └─▶ merged in a process of its own ─▶ OUTPUT
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cli.client.server import Server
from cli.errors import CliError
from cli.terminal import say, visible
from cli.up.effective import running
from jobs import programs
from jobs.registry.manifests import MANIFEST, ManifestFile, decode_manifest

_READ = 1 << 20
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_CHECKPOINT = ":ckpt-step-"


def model_of(server: Server, name: str, step: int | None) -> str:
    """Return the name of the model to export: of a job, of a checkpoint of it, or `name` itself. Raises CliError."""
    if not name.startswith("ftjob-"):
        return name if step is None else f"{name.partition(_CHECKPOINT)[0]}{_CHECKPOINT}{step}"
    job = server.get(f"/fine_tuning/jobs/{quote(name, safe='')}")
    if step is None and job["fine_tuned_model"]:
        return str(job["fine_tuned_model"])
    checkpoints = server.pages(f"/fine_tuning/jobs/{job['id']}/checkpoints", {}, 1000)
    steps = {row["step_number"]: str(row["fine_tuned_model_checkpoint"]) for row in checkpoints}
    if step in steps:
        return steps[step]
    there = ", ".join(map(str, sorted(steps))) or "none"
    missing = f"no checkpoint of step {step}" if step is not None else f"no model: its status is {job['status']}"
    raise CliError(f"{name} has {missing}; steps with a checkpoint, for --checkpoint: {there}")


def export(server: Server, model: str, output: Path) -> dict[str, Any]:
    """Write the files of a model to a new folder; return what the server says of them. Raises CliError."""
    route = f"/fine_tuning/models/{quote(model, safe='/:')}/files"
    listed = server.get(route)
    with _whole_folder(output) as folder:
        for file in listed["data"]:
            if not _FILE_NAME.fullmatch(file["name"]):
                raise CliError(f"the server lists a file whose name no model has: {visible(file['name'])}")
            path = folder / file["name"]
            server.fetch(f"{route}/{file['name']}", path)
            if _sha256(path) != file["sha256"]:
                raise CliError(f"{file['name']} does not have the bytes that were trained; nothing was exported")
    return listed


def export_merged(server: Server, model: str, output: Path, data_dir: Path | None, base: Path | None) -> dict[str, Any]:
    """Write a model to a new folder as one set of weights; return what the server lists. Raises CliError."""
    config = running(data_dir)
    with _whole_folder(output) as folder:
        adapter = folder.with_name(f"{folder.name}.adapter")
        shutil.rmtree(adapter, ignore_errors=True)
        try:
            listed = export(server, model, adapter)
            if listed["method"] == "full":
                folder.rmdir()
                adapter.rename(folder)
            else:
                say(f"merging into {listed['base']}", err=True)
                if reason := programs.merge_adapter(config, adapter, listed["base"], folder, base):
                    raise CliError(f"{model} was not merged: {reason}")
        finally:
            shutil.rmtree(adapter, ignore_errors=True)
    return listed


def verify(folder: Path) -> tuple[str, list[str]]:
    """Return the SHA-256 of the manifest of an exported model, and what is wrong with its files. Raises CliError."""
    import msgspec

    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise CliError(f"{folder} has no {MANIFEST} of an exported model") from error
    files = manifest.model_files
    if bad := next((name for name in files if not _FILE_NAME.fullmatch(name)), None):
        raise CliError(f"{folder / MANIFEST} lists a file whose name no model has: {visible(bad)}")
    faults = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    there = {path.name for path in folder.iterdir()}
    faults += [
        f"{name} was changed" for name in sorted(files.keys() & there) if not _is_intact(folder / name, files[name])
    ]
    faults += [f"{name} was added" for name in sorted(there - files.keys() - {MANIFEST})]
    return _sha256(folder / MANIFEST), faults


def _is_intact(path: Path, file: ManifestFile) -> bool:
    return not path.is_file() or (path.stat().st_size, _sha256(path)) == (file.bytes, file.sha256)


def require_new(output: Path) -> None:
    """Raise CliError if no folder can be made at `output`, or if files are there already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CliError(f"{output} exists and is no empty folder")
    if not output.absolute().parent.is_dir():
        raise CliError(f"{output}: there is no such folder to make it in")


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends without an error."""
    partial = output.absolute().with_name(f"{output.absolute().name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        partial.replace(output)
    except OSError as error:
        raise CliError(f"{output}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while data := handle.read(_READ):
            digest.update(data)
    return digest.hexdigest()

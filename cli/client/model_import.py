"""Import an exported model: its files to the server, which checks them against the base and registers a version.

DIR, each hash is right ─▶ uploaded, large files in parts ─▶ import ─▶ its end ─▶ the uploaded files are deleted
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cli.client.model_export import verify
from cli.client.server import Server
from cli.errors import CliError
from cli.terminal import say

_CONFIG = "adapter_config.json"
_LIVE = ("in_progress", "cancelling")
_LOOK = 0.5


def split_family(family: str | None, base: str | None, folder: Path) -> tuple[str, str | None]:
    """Return the base and the suffix of a family, `<base>:<suffix>` or a suffix alone; otherwise the adapter's base.

    Raises CliError, where the folder names none.
    """
    named, _, suffix = (family or "").rpartition(":")
    return base or named or _base_of(folder), suffix or None


def import_model(server: Server, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Upload a folder and import it; return the version. Raises CliError with the reason where that failed."""
    if faults := verify(folder)[1]:
        raise CliError(f"{folder} is not as it was exported: {'; '.join(faults)}")
    with _temporary_files(server, folder) as files:
        made = server.post("/model_imports", body | {"files": files})
        say(f"{made['id']} imports {folder}", err=True)
        while (ended := server.get(f"/model_imports/{made['id']}"))["status"] in _LIVE:
            threading.Event().wait(_LOOK)
    if ended["model"] is None:
        reason = ended["error"]["message"] if ended["error"] else f"the import was {ended['status']}"
        raise CliError(f"{folder} was not imported: {reason}")
    return server.get(f"/model_versions/{ended['model']}")


@contextmanager
def _temporary_files(server: Server, folder: Path) -> Iterator[list[dict[str, str]]]:
    """Yield the names and the ids of the uploaded files of a folder, and delete them in the end."""
    files: list[dict[str, str]] = []
    try:
        for path in sorted(folder.iterdir()):
            file_id = server.upload_large(path, "user_data")
            files.append({"name": path.name, "file_id": file_id})
        yield files
    finally:
        for file in files:
            with suppress(CliError):
                server.delete(f"/files/{file['file_id']}")


def _base_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / _CONFIG).read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CliError(f"{folder / _CONFIG} names no base: name it with --base") from error

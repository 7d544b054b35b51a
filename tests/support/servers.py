"""Real servers of the distributed set, on loopback and in folders of their own: RabbitMQ, Valkey and an S3 gateway.

    RabbitMQ   Debian's package `rabbitmq-server`
    Valkey     the program that the embedded broker is
    S3         versitygw over a folder: on PATH, or built once with Go into the checkout's `.nightmill/bin`

Each can be killed and started again on the same port with what it had on disk.
"""

import os
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from cli.up import broker
from tests.support.system import ROOT, eventually, free_port

_UP_SECONDS = 60.0


class Server(ABC):
    """A program that listens on a port of this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def start(self) -> None:
        """Start the server. Raises FileNotFoundError without the program, TimeoutError when it does not listen."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        eventually(self._listens, _UP_SECONDS, f"{self.command()[0]} listens")

    def processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            main = psutil.Process(self._process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:  # it has ended by itself
            return []

    def kill(self) -> None:
        """Kill the server and everything that it has started with SIGKILL."""
        if self._process is None:
            return
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def close(self) -> None:
        self.kill()

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended:\n{self._log.read_text(errors='replace')[-2000:]}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class Rabbit(Server):
    """RabbitMQ, one node, with a process registry (epmd) of its own."""

    PROGRAM: ClassVar = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._epmd, self._distribution = free_port(), free_port()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        (folder / "plugins").write_text("[].\n")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> list[str]:
        return [str(self.PROGRAM)]

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),  # the cookie's
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"nightmill{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "db"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
        }

    def close(self) -> None:
        super().close()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "epmd" and process.environ().get("ERL_EPMD_PORT") == str(self._epmd):
                    process.kill()


class Valkey(Server):
    """Run Valkey for the requests of interactive clients, without a file on disk."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        words = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "appendonly": "no", "save": ""}
        return [broker.server(), *(word for name, value in words.items() for word in (f"--{name}", value))]


class S3Gateway(Server):
    """An S3 server over a folder, with one bucket. `variables` is what boto and s3fs read."""

    BUCKET: ClassVar = "nightmill"
    MODULE: ClassVar = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
    BUILT: ClassVar = ROOT / ".nightmill" / "bin"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "objects").mkdir(exist_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "nightmill",
            "AWS_SECRET_ACCESS_KEY": "nightmill-secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def command(self) -> list[str]:
        return [self.program(), "--port", f"127.0.0.1:{self.port}", "posix", str(self.folder / "objects")]

    def environment(self) -> Mapping[str, str]:
        keys = self.variables
        root = {"ROOT_ACCESS_KEY": keys["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"]}
        return {**os.environ, **root}

    def make_bucket(self) -> None:
        (self.folder / "objects" / self.BUCKET).mkdir(exist_ok=True)

    @classmethod
    def program(cls) -> str:
        """Return the path of the program. Raises FileNotFoundError without the program and without Go to build it."""
        found = shutil.which("versitygw") or shutil.which("versitygw", path=str(cls.BUILT))
        if found is None:
            cls.BUILT.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "GOBIN": str(cls.BUILT)}
            subprocess.run(["go", "install", cls.MODULE], env=environment, check=True, capture_output=True, cwd="/")
            found = str(cls.BUILT / "versitygw")
        return found

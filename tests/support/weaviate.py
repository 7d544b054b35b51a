"""A Weaviate of one node on loopback, in a folder of its own.

On PATH, or built once with Go into the checkout's `.nightmill/bin`: `python -m tests.support.weaviate`, five minutes.
A test run does not build it: where the program is missing, what needs it is skipped (or fails, where CI is set).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import httpx2

from tests.support.servers import Server
from tests.support.system import ROOT, eventually, free_port

_READY_SECONDS = 60.0


class Weaviate(Server):
    """Run a server that can be killed and started again on the same ports with what it had on disk."""

    MODULE: ClassVar = "github.com/weaviate/weaviate/cmd/weaviate-server@v1.38.11"
    NAMES: ClassVar = ("weaviate-server", "weaviate")
    BUILT: ClassVar = ROOT / ".nightmill" / "bin"

    def __init__(self, folder: Path, api_key: str = "") -> None:
        super().__init__(folder)
        self.api_key = api_key
        self.grpc_port = free_port()
        names = ("CLUSTER_GOSSIP_BIND_PORT", "CLUSTER_DATA_BIND_PORT", "RAFT_PORT", "RAFT_INTERNAL_RPC_PORT")
        self._ports = {name: str(free_port()) for name in names}

    @property
    def url(self) -> str:
        """As the setting has it."""
        return f"weaviate://127.0.0.1:{self.port}?grpc=127.0.0.1:{self.grpc_port}"

    def command(self) -> list[str]:
        return [self.found(), "--host", "127.0.0.1", "--port", str(self.port), "--scheme", "http"]

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            **self._ports,
            **self._access(),
            "PERSISTENCE_DATA_PATH": str(self.folder / "data"),
            "CLUSTER_HOSTNAME": "node1",
            "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
            "RAFT_BOOTSTRAP_EXPECT": "1",
            "GRPC_PORT": str(self.grpc_port),
            "DISABLE_TELEMETRY": "true",
            "DEFAULT_VECTORIZER_MODULE": "none",
            "PROMETHEUS_MONITORING_ENABLED": "false",
        }

    def start(self) -> None:
        """Start the server, which listens before it is ready."""
        super().start()
        eventually(self._ready, _READY_SECONDS, "Weaviate is ready")

    @classmethod
    def found(cls) -> str:
        """Return the path of the program. Raises FileNotFoundError where it is missing."""
        for name in cls.NAMES:
            if found := shutil.which(name) or shutil.which(name, path=str(cls.BUILT)):
                return found
        raise FileNotFoundError("there is no weaviate-server on PATH or in .nightmill/bin")

    @classmethod
    def program(cls) -> str:
        """Return the path of the program, built when it is missing. Raises FileNotFoundError where that needs Go."""
        with suppress(FileNotFoundError):
            return cls.found()
        cls.BUILT.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "GOBIN": str(cls.BUILT)}
        subprocess.run(["go", "install", cls.MODULE], env=environment, check=True, cwd="/")
        return cls.found()

    def _access(self) -> dict[str, str]:
        if not self.api_key:
            return {"AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true"}
        return {
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
            "AUTHENTICATION_APIKEY_ENABLED": "true",
            "AUTHENTICATION_APIKEY_ALLOWED_KEYS": self.api_key,
            "AUTHENTICATION_APIKEY_USERS": "nightmill",
            "AUTHORIZATION_ADMINLIST_ENABLED": "true",
            "AUTHORIZATION_ADMINLIST_USERS": "nightmill",
        }

    def _ready(self) -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"http://127.0.0.1:{self.port}/v1/.well-known/ready", timeout=2).is_success
        return False


if __name__ == "__main__":
    sys.stdout.write(f"{Weaviate.program()}\n")

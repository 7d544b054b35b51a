"""`python -m tests.distributed`: a deployment of several hosts on one machine, to look at and to try things on.

    servers    PostgreSQL, RabbitMQ, S3 ── all that the hosts share
    a host     `nightmill up` with a data folder of its own, beside the others

The servers' data is gone when it ends. Words that it does not know are handed to each `up`, for example `--no-vllm`.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2

from tests.support.distributed import Servers, servers
from tests.support.system import ROOT, eventually, free_port, pause

_UP_SECONDS = 120.0
_DOWN_SECONDS = 60.0


class Host:
    """One `nightmill up`, whose words are shown as they come."""

    def __init__(self, folder: Path, port: int, variables: Mapping[str, str], options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "cli", "up", "--data-dir", str(folder), "--port", str(port), *options]
        self.url, self.folder = f"http://127.0.0.1:{port}", folder
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})

    def lives(self) -> bool:
        return self.process.poll() is None

    def answers(self) -> bool:
        if not self.lives():
            raise RuntimeError(f"the host in {self.folder} ended with {self.process.returncode}")
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/livez", timeout=2).is_success
        return False

    def stop(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(_DOWN_SECONDS)
        self.process.kill()
        self.process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__, allow_abbrev=False)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000, help="of the first host; the others take free ones")
    parser.add_argument("--data-dir", type=Path, default=Path("data/distributed"))
    chosen, options = parser.parse_known_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ends are the same: everything stops
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="nightmill-servers-") as folder:
        print("starting PostgreSQL, RabbitMQ and S3", flush=True)
        with servers(Path(folder)) as shared, ExitStack() as stack:
            ports = (chosen.port, *(free_port() for _ in range(chosen.hosts - 1)))
            hosts: list[Host] = []
            for number, port in enumerate(ports, 1):  # one after the other: the first makes the tables
                host = Host(chosen.data_dir.absolute() / f"host{number}", port, shared.variables, options)
                stack.callback(host.stop)
                hosts.append(host)
                eventually(host.answers, _UP_SECONDS, f"host {number} answers")
            print(_shown(shared, hosts), flush=True)
            while all(host.lives() for host in hosts):
                pause(0.5)
            return 1
    return 0


def _shown(shared: Servers, hosts: Sequence[Host]) -> str:
    lines = ["", "A batch may be created at any host and is worked on by all. Ctrl-C stops everything."]
    for number, host in enumerate(hosts, 1):
        lines.append(f"host {number}: {host.url}, its key is in {host.folder / 'run.json'}")
    for name, server in shared.named.items():
        lines.append(f"{name}: process {server.processes()[0].pid}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

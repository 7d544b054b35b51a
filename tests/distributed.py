"""`python -m tests.distributed`: a deployment of several hosts on one machine, to look at and to try things on.

    servers    PostgreSQL, RabbitMQ, S3, Valkey, Weaviate ── all that the hosts share
    a host     `nightmill up` with a data folder of its own, beside the others

The servers' data is gone when it ends. Words that it does not know are handed to each `up`, for example `--no-vllm`.
`environment` in the data folder is what every host has in common: with it, commands of `nightmill` work from any shell.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from cli.demo.system import System, running
from cli.errors import CliError
from tests.support.distributed import Servers, servers
from tests.support.system import free_port, pause
from tests.support.weaviate import Weaviate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__, allow_abbrev=False)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000, help="of the first host; the others take free ones")
    parser.add_argument("--data-dir", type=Path, default=Path("data/distributed"))
    chosen, options = parser.parse_known_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ends are the same: everything stops
    data = chosen.data_dir.absolute()
    try:
        with tempfile.TemporaryDirectory(prefix="nightmill-servers-") as folder, suppress(KeyboardInterrupt):
            _say("starting PostgreSQL, RabbitMQ, S3 (its gateway is built with Go the first time: minutes) and Valkey")
            with servers(Path(folder)) as shared, ExitStack() as stack:
                hosts: list[System] = []
                variables = shared.variables | _vectors(stack, Path(folder))
                for port in (chosen.port, *(free_port() for _ in range(chosen.hosts - 1))):
                    _say(f"starting host {len(hosts) + 1}")
                    words = ("--port", str(port), *options)
                    host = stack.enter_context(running(data / f"host{len(hosts) + 1}", words, variables))
                    host.wait_until_ready()  # the first makes the tables
                    hosts.append(host)
                _say(_shown(shared, hosts, _environment(data, variables)))
                while True:
                    pause(0.5)
                    for host in hosts:
                        host.check()
    except CliError as trouble:
        _say(str(trouble))
        return 1
    except (FileNotFoundError, subprocess.CalledProcessError) as missing:  # a server that no wheel brings
        _say(f"{missing}\n`make services` installs what is missing")
        return 1
    return 0


def _vectors(stack: ExitStack, folder: Path) -> dict[str, str]:
    """Weaviate, where it was built: without it only the first host that needs them has vectors."""
    try:
        server = Weaviate(folder / "weaviate")
        stack.callback(server.close)
        server.start()
    except FileNotFoundError:
        _say("there is no Weaviate, so vector stores work on one host alone: `make weaviate` builds it")
        return {}
    return {"NIGHTMILL_VECTORS_URL": server.url}


def _environment(data: Path, variables: Mapping[str, str]) -> Path:
    """Write the environment, which contains passwords, for its owner alone."""
    path = data / "environment"
    path.touch(mode=0o600)
    path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
    return path


def _shown(shared: Servers, hosts: Sequence[System], environment: Path) -> str:
    lines = ["", "A batch may be created at any host and is worked on by all. Ctrl-C stops everything.", ""]
    for number, host in enumerate(hosts, 1):
        lines.append(f"host {number}: {host.url}/v1, its key is in {host.folder.run_file}; Flower: {host.flower_url}")
    for name, server in shared.named.items():
        lines.append(f"{name}: process {server.processes()[0].pid}")
    here = hosts[0].folder.path
    lines += ["", "In another shell:", f"  . {environment}", f"  .venv/bin/nightmill workers --data-dir {here}"]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

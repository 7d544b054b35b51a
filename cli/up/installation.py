"""An installation on this machine: its processes, their environment, and the messages to the user."""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from cli.errors import CliError
from cli.terminal import say, wipe_line, write_line
from cli.up import broker, procfile, readiness
from cli.up.folder import FLOWER_PASSWORD, SUPERVISED, DataFolder
from cli.up.readiness import is_free, reachable_url
from cli.up.service import Program, Service
from cli.up.supervisor import Hooks, Plan, Supervisor, Wakeups, stop_seconds
from jobs.fleet.models_file import EngineKind, Models, ModelsFileError, Registry
from jobs.platform.secret_files import replace_values
from jobs.queues import Queue
from jobs.settings import Settings


class Notices:
    """Print lines to the terminal and the log, from several threads."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        self._log = os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", buffering=1)

    def say(self, text: str) -> None:
        """Print one notice, and write it to the log."""
        with self._lock, suppress(OSError):  # the disk is full
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self.show(text)

    def show(self, text: str) -> None:
        """Print one notice without writing it to the log. It is dropped when the reader of the output is slow."""
        with self._lock, suppress(OSError, ValueError):
            if _writable():
                wipe_line()
                say(text)

    def update(self, text: str) -> None:
        """Write `text` over the last line of a terminal; elsewhere write nothing."""
        with self._lock, suppress(OSError, ValueError):
            if sys.stdout.isatty() and _writable():
                wipe_line()
                write_line(text)


def _writable() -> bool:
    """Return whether standard output takes a line without blocking."""
    return bool(select.select([], [sys.stdout], [], 0)[1])


FLOWER_USER = "nightmill"
_FLOWER = "flower"


@dataclass(frozen=True, slots=True)
class Installation:
    """Settings, data folder and program folder of one installation."""

    config: Settings
    folder: DataFolder
    root: Path
    guard_pid: int
    verbose: bool
    adds_models: bool = False  # a process for each model that no line of the Procfile serves

    @property
    def url(self) -> str:
        return self.config.public_url.rstrip("/") or reachable_url(self.config.host, self.config.port)

    @property
    def flower_url(self) -> str:
        return reachable_url(self.config.flower_host, self.config.flower_port)

    def check(self) -> None:
        """Raise CliError for a port in use or an invalid models file, before a process that needs it fails."""
        if not is_free(self.config.host, self.config.port):
            raise CliError(f"port {self.config.port} of {self.config.host} is in use; choose another with --port")
        try:
            Registry.load(self.config)
        except ModelsFileError as error:
            raise CliError(str(error)) from error

    def run(self, lines: Sequence[procfile.Line], guard: int, killed: int) -> int:
        """Supervise until a signal ends it. This is the body of the supervisor's process."""
        notices = Notices(self.folder.logs / "up.log")
        leaving = threading.Event()
        with Wakeups(guard) as wakeups:
            if killed:
                notices.say(f"killed {killed} processes that an earlier run left behind")
            try:
                return Supervisor(self.plan(lines), self.hooks(lines, notices, leaving), wakeups).run()
            finally:
                leaving.set()
                self.folder.run_file.unlink(missing_ok=True)

    def plan(self, lines: Sequence[procfile.Line]) -> Plan:
        """Return the services to start, in order."""
        services = {line.name: Service(self._program(line)) for line in lines}
        release, seconds = services.pop(procfile.RELEASE, None), self.config.shutdown_seconds
        plan = Plan(list(services.values()), release, shutdown_seconds=seconds, more=self._model_services(lines))
        if self.config.broker_url:
            return plan
        return replace(
            plan,
            broker=Service(self._program(procfile.Line("broker", broker.command(self.folder.path)))),
            broker_answers=lambda: broker.answers(self.folder.path),
            repair_broker=lambda: broker.set_aside(self.folder.path),
        )

    def _model_services(self, lines: Sequence[procfile.Line]) -> Callable[[], list[Service]]:
        """Return the function that makes a service for each queue of the models file that has none yet."""
        known, models = list(lines), Models(self.config)

        def make() -> list[Service]:
            if not self.adds_models:
                return []
            try:
                added = procfile.lines_for(models.now().models.values(), known)
            except ModelsFileError:  # changed since the check; the workers report the error
                return []
            known.extend(added)
            return [Service(self._program(line)) for line in added]

        return make

    def _program(self, line: procfile.Line) -> Program:
        environment = replace_values(os.environ, {**self.environment(), **line.environment})
        if line.name == _FLOWER:  # not in a command line: every user can read those
            login = f"{FLOWER_USER}:{self.folder.flower_password()}"
            environment = replace_values(environment, {"FLOWER_BASIC_AUTH": login})
        return Program(line.name, line.program, environment, self.root, self.folder.logs / f"{line.name}.log")

    def environment(self) -> Mapping[str, str]:
        """Return the variables that command line and settings determine, for every process."""
        config = self.config
        return {
            "NIGHTMILL_DATA_DIR": str(config.data_dir),
            "NIGHTMILL_HOST": config.host,
            "NIGHTMILL_PORT": str(config.port),
            "NIGHTMILL_FLOWER_PORT": str(config.flower_port),
            "NIGHTMILL_ENGINE_URLS": ",".join(config.engine_urls),
            "NIGHTMILL_VLLM_ENABLED": str(config.vllm_enabled).lower(),
            "NIGHTMILL_MODELS_FILE": config.models_file,
            "NIGHTMILL_OPENAI_ALIASES": str(config.openai_aliases).lower(),
            "NIGHTMILL_BROKER_URL": config.broker_url or broker.broker_url(self.folder.path),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            SUPERVISED: str(config.data_dir),
        }

    def hooks(self, lines: Sequence[procfile.Line], notices: Notices, leaving: threading.Event) -> Hooks:
        """Return the hooks that write the supervisor's reports to `run.json` and to the user."""
        shown = (lambda name, line: notices.show(f"{name:>10} | {line}")) if self.verbose else None
        return Hooks(
            say=notices.say,
            publish=self._publish,
            released=lambda: self._announce(lines, notices, leaving),
            stopping=leaving.set,
            output=shown,
        )

    def _publish(self, services: Sequence[Service]) -> None:
        key = self.folder.operator_key()
        if not key:  # before the first release step nothing can be connected to
            return
        self.folder.write_run(
            {
                "url": self.url,
                "flower_url": self.flower_url if any(service.name == _FLOWER for service in services) else None,
                "api_key": key,
                "models_file": self.config.models_file,
                "openai_aliases": self.config.openai_aliases,
                "adds_models": self.adds_models,
                "pid": self.guard_pid,
                "stop_seconds": stop_seconds(self.config.shutdown_seconds),
                "processes": [service.to_json() for service in services],
            }
        )

    def _announce(self, lines: Sequence[procfile.Line], notices: Notices, leaving: threading.Event) -> None:
        names = [line.name for line in lines]
        notices.say(f"starting in {self.folder.path}; what each process logs is in {self.folder.logs}")
        own = reachable_url(self.config.host, self.config.port)  # a proxy may not forward /statusz

        def ready() -> None:
            notices.say(f"ready: {self.url}/v1")
            console = readiness.console_path(own)  # shown and not logged: it may hold a token
            notices.show(self.folder.browser_line(self.url, console, linked=sys.stdout.isatty()))
            if _FLOWER in names:
                password = self.folder.path / FLOWER_PASSWORD
                notices.say(f"flower: {self.flower_url} (user {FLOWER_USER}, password in {password})")
            key = self.folder.operator_key()  # shown in a terminal, never in a pipe or a log
            notices.show(f"API key: {key if sys.stdout.isatty() else f'in {self.folder.run_file}'}")
            if "gpu" in names and self.config.vllm_enabled:
                notices.say(_vllm_start(self._vllm_models()))

        pools = {line.name: queue for line in lines if (queue := procfile.queue_of(line))}
        readiness.tell_when_up(own, pools, ready, notices.say, notices.update, leaving)

    def _vllm_models(self) -> str:
        try:
            models = Registry.load(self.config).models.values()
        except ModelsFileError:  # changed since the check; the worker reports the error
            return "no model"
        usual = [model.name for model in models if (model.engine, model.queue) == (EngineKind.VLLM, Queue.GENERATE)]
        return ", ".join(usual) or "no model"


def _vllm_start(models: str) -> str:
    """Return what the generation worker does about `models`."""
    if find_spec("vllm"):
        return f"gpu loads {models}; vLLM takes about a minute to start"
    return f"gpu cannot load {models}: vLLM is not installed; `nightmill doctor` says what brings it"

"""Name the phase in which vLLM starts, by the records that its processes log.

    engine's processes ── records of the logger `vllm` ──▶ PhaseHandler ──▶ a file with one phase ──▶ VllmEngine.phase

Each process of vLLM reads its logging configuration from the file that VLLM_LOGGING_CONFIG_PATH names. Ours has vLLM's
own handler, with the level that VLLM_LOGGING_LEVEL names, and `PhaseHandler`. A handler sees the message before its
arguments are filled in, so that no text of a client can reach the file. Imports the standard library only: the engine's
processes load this module before vLLM.
"""

import json
import logging
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

IMPORTING: Final = "importing vLLM"
STARTING: Final = "starting its processes"
READING: Final = "reading the weights"
PROFILING: Final = "profiling the memory"
COMPILING: Final = "compiling"
WARMING: Final = "warming up"

_LOADS: Final = ("Starting to load model", "Loading model from scratch")
_CACHED: Final = "%s KV cache size"
#: What begins with a record, by the beginning of its message in vLLM 0.32. `%s` there is a prefix, mostly empty.
BEGINS: Final = (
    ("Initializing a V1 LLM engine", "preparing the device"),
    *((message, READING) for message in _LOADS),
    ("Time spent downloading weights", READING),
    ("Loading weights took", PROFILING),
    ("Model loading took", PROFILING),
    ("%sStarting torch.compile", COMPILING),
    ("%sDynamo bytecode transform time", COMPILING),
    ("%sInitial profiling/warmup run took", PROFILING),
    ("Compile and warming up model for size", COMPILING),
    ("Warming up model for the compilation", COMPILING),
    ("Warming up done", WARMING),
    (_CACHED, WARMING),
    ("Graph capturing finished", WARMING),
    ("init engine (profile, create kv cache, warmup model) took", "preparing to answer"),
)
_FORMAT: Final = (
    "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s"
)


class PhaseHandler(logging.Handler):
    """Write the phase that a record begins to a file. `named` has other names for some phases of `BEGINS`."""

    def __init__(self, file: str, named: dict[str, str] | None = None) -> None:
        super().__init__(logging.INFO)
        self._file, self._phase_names = Path(file), named or {}

    def emit(self, record: logging.LogRecord) -> None:
        message = str(record.msg)
        for beginning, phase in BEGINS:
            if message.startswith(beginning):
                with suppress(OSError):  # a full disk: an old phase is no harm
                    self._file.write_text(self._phase_names.get(beginning, phase))
                return


def record(file: Path, variables: MutableMapping[str, str], model: str, args: Mapping[str, Any]) -> None:
    """Have the processes that get `variables` write their phase to `file`; a configuration that is set stays.

    `model` is a folder, or a name on the hub, and `args` are vLLM's arguments.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    configuration = file.with_suffix(".logging.json")
    if variables.get("VLLM_CONFIGURE_LOGGING", "1") == "0":
        return
    if variables.setdefault("VLLM_LOGGING_CONFIG_PATH", str(configuration)) == str(configuration):
        level = variables.get("VLLM_LOGGING_LEVEL", "INFO").upper()
        stream = variables.get("VLLM_LOGGING_STREAM", "ext://sys.stdout")
        configuration.write_text(json.dumps(_configuration(file, _phase_names(model, args), level, stream)))


def _phase_names(model: str, args: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of what else begins with some records: a download, and graphs, of which no record tells."""
    named = {} if Path(model).is_dir() else dict.fromkeys(_LOADS, "downloading or reading the weights")
    return named if args.get("enforce_eager") else named | {_CACHED: "capturing graphs"}


def read(file: Path) -> str:
    """Return the phase that was written last; empty where there is none."""
    with suppress(OSError):
        return file.read_text()
    return ""


def _configuration(file: Path, named: dict[str, str], level: str, stream: str) -> dict[str, Any]:
    """Return vLLM's own configuration, with our handler beside the one that it has."""
    shown = {"()": "vllm.logging_utils.NewLineFormatter", "datefmt": "%m-%d %H:%M:%S", "format": _FORMAT}
    written = {"class": "logging.StreamHandler", "formatter": "vllm", "level": level, "stream": stream}
    phases = {"()": f"{__name__}.PhaseHandler", "file": str(file), "named": named}
    numbers = [number for number in (logging.getLevelName(level), logging.INFO) if isinstance(number, int)]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"vllm": shown | {"log_level": level}},
        "handlers": {"vllm": written, "phases": phases},
        "loggers": {"vllm": {"handlers": ["vllm", "phases"], "level": min(numbers), "propagate": False}},
    }

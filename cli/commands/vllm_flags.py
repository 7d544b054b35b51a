"""Turn vLLM's flags into engine arguments. vLLM's own parser checks them in the worker.

Values stay text, since `yes`, `010` or a JSON object mean what vLLM's parser takes them for. Only whole numbers become
integers, as they are in models files.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cli.errors import CliError
from cli.groups import Verb

#: Short flags by their long forms; `spelled_out` handles `-O3`.
SHORT = {
    "-ac": "--attention-config", "-cc": "--compilation-config", "-dc": "--diffusion-config",
    "-dcp": "--decode-context-parallel-size", "-dp": "--data-parallel-size", "-dpa": "--data-parallel-address",
    "-dpb": "--data-parallel-backend", "-dpe": "--data-parallel-external-lb", "-dph": "--data-parallel-hybrid-lb",
    "-dpl": "--data-parallel-size-local", "-dpm": "--data-parallel-multi-port-external-lb",
    "-dpn": "--data-parallel-rank", "-dpp": "--data-parallel-rpc-port", "-dpr": "--data-parallel-start-rank",
    "-ep": "--enable-expert-parallel", "-n": "--nnodes", "-pcp": "--prefill-context-parallel-size",
    "-pp": "--pipeline-parallel-size", "-q": "--quantization", "-r": "--node-rank", "-sc": "--speculative-config",
    "-tp": "--tensor-parallel-size",
}  # fmt: skip
#: Flags of `vllm serve`, and so of the engine's parser, that `vllm run-batch` does not have.
SERVE_ONLY = frozenset({
    "allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins", "api_key", "api_server_count",
    "config", "data_parallel_supervisor_port", "disable_access_log_for_endpoints", "disable_fastapi_docs",
    "disable_uvicorn_access_log", "dp_supervisor_probe_failure_threshold", "dp_supervisor_probe_interval_s",
    "dp_supervisor_probe_timeout_s", "enable_flash_late_interaction", "enable_offline_docs",
    "enable_request_id_headers", "enable_ssl_refresh", "grpc", "grpc_port", "h11_max_header_count",
    "h11_max_incomplete_event_size", "headless", "middleware", "root_path", "ssl_ca_certs", "ssl_cert_reqs",
    "ssl_certfile", "ssl_ciphers", "ssl_keyfile", "uds", "uvicorn_log_level",
})  # fmt: skip
_SERVED = "a run of its own has no server of metrics; `nightmill up` has one, at /metrics"
#: Flags without a use in a private run, with the reason.
_REFUSED = {
    **dict.fromkeys(SERVE_ONLY, "a flag of `vllm serve`; `vllm run-batch` has none of that name either"),
    **dict.fromkeys(("enable_metrics", "host", "port"), _SERVED),
    "lora_modules": "all lines of a batch name one model, so that none could name an adapter; merge it into the model",
}
_OURS = ("-i", "-o")
_SHORT = re.compile(r"(-[A-Za-z]+)(.*)", re.DOTALL)


class TakesFlags(Verb):
    """A command that leaves vLLM's flags in `context.args`. Click alone would read `-tp` as `-t -p`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spelled_out(args))


def spelled_out(words: Sequence[str]) -> list[str]:
    """Return the words with vLLM's short flags in their long form. Raises CliError for an unknown short flag."""
    spelled: list[str] = []
    for word in words:
        short = _SHORT.fullmatch(word)
        if short is None or word == "-h" or word.startswith(_OURS):
            spelled.append(word)
        elif word.startswith("-O"):
            level = word[2:].removeprefix("=")
            spelled += ["--optimization-level", *([level] if level else [])]
        elif short[1] in SHORT and short[2][:1] in ("", "=", "."):
            spelled.append(SHORT[short[1]] + short[2])
        else:
            raise CliError(f"'{word}' is no flag; those that are vLLM's stand in `vllm run-batch --help=all`")
    return spelled


def engine_args(flags: Sequence[str]) -> dict[str, Any]:
    """Return flags such as `--max-model-len 2048 --enforce-eager` as models.yaml has them.

    A flag with several values becomes a list, `--no-x` the argument `no_x`, `--a.b c` an object that replaces `--a`.

    Raises:
        CliError: a word belongs to no flag.
    """
    arguments: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise CliError(f"'{word}' belongs to no flag")
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if "." in name:
            _put(objects, name, " ".join(values))
        else:
            key = name.replace("-", "_")
            arguments.pop(_opposite(key), None)
            arguments[key] = _value(name, values)
    return arguments | objects


def refuse(arguments: Iterable[str]) -> None:
    """Raise CliError for arguments without a use in a private run, also abbreviated, because vLLM accepts prefixes."""
    for given in arguments:
        name = given.removeprefix("no_")
        for refused, reason in _REFUSED.items():
            if name and refused.startswith(name):
                raise CliError(f"--{refused.replace('_', '-')}: {reason}")


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's own arguments, replaced by those in `given`."""
    return {name: value for name, value in own.items() if _opposite(name) not in given} | dict(given)


def _opposite(name: str) -> str:
    return name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"


def _value(name: str, values: list[str]) -> Any:
    if len(values) == 1 and values[0].lower() in ("true", "false"):
        raise CliError(f"--{name} takes no value: write --{name} or --no-{name}")
    if len(values) == 1:
        [word] = values
        return int(word) if re.fullmatch(r"0|[1-9][0-9]{0,17}", word) else word
    return values or True


def _put(objects: dict[str, Any], name: str, word: str) -> None:
    """Store the value of `a.b.c` as vLLM reads it: as JSON where it is valid, of `a.b+` as a list split at commas."""
    first, *path, last = name.removesuffix("+").split(".")
    target = objects.setdefault(first.replace("-", "_"), {})
    for part in path:
        target = target.setdefault(part, {})
    try:
        target[last] = word.split(",") if name.endswith("+") else json.loads(word)
    except ValueError:
        target[last] = word

"""vLLM's start is told in phases, by the records of its processes."""

import json
import logging
import logging.config
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from workers.engines.vllm import phases

EAGER = {"enforce_eager": True}
#: Records of a start of vLLM 0.32 in their order: on a CPU with `enforce_eager`, and on a GPU without.
ON_CPU = (
    ("Initializing a V1 LLM engine (v%s) with config: %s", "preparing the device"),
    ("Starting to load model %s...", "reading the weights"),
    ("Loading weights took %.2f seconds", "profiling the memory"),
    ("%s KV cache size: %s tokens", "warming up"),
    ("init engine (profile, create kv cache, warmup model) took %.2f s", "preparing to answer"),
)
ON_GPU = (
    ("Starting to load model %s...", "downloading or reading the weights"),
    ("Time spent downloading weights for %s: %.6f seconds", "reading the weights"),
    ("Model loading took %s GiB memory and %.6f seconds", "profiling the memory"),
    ("%sStarting torch.compile", "compiling"),
    ("%sInitial profiling/warmup run took %.2f s", "profiling the memory"),
    ("%s KV cache size: %s tokens", "capturing graphs"),
    ("Graph capturing finished in %.0f secs, took %.2f GiB", "warming up"),
)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Return vLLM's logger, and give it back as it was."""
    logger = logging.getLogger("vllm")
    before = logger.handlers, logger.level, logger.propagate
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def configured(file: Path, variables: dict[str, str], model: str, args: dict[str, Any]) -> None:
    """Do what each process of vLLM does, without its formatter: importing vLLM takes too long."""
    phases.record(file, variables, model, args)
    configuration = json.loads(Path(variables["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    assert configuration["formatters"]["vllm"].pop("()") == "vllm.logging_utils.NewLineFormatter"
    configuration["formatters"]["vllm"] = {"format": "%(message)s"}
    logging.config.dictConfig(configuration)


@pytest.mark.parametrize("cpu", [True, False])
def test_each_phase_begins_with_its_record(tmp_path: Path, logger: logging.Logger, *, cpu: bool) -> None:
    file = tmp_path / "run" / "engine.phase"
    model, args, records = (str(tmp_path), EAGER, ON_CPU) if cpu else ("org/name", {}, ON_GPU)
    configured(file, {"VLLM_LOGGING_LEVEL": "WARNING"}, model, args)
    assert phases.read(file) == ""

    for message, phase in records:
        logging.getLogger("vllm.v1").info(message, *["x"] * message.count("%s"))
        logger.info("Between two phases: %s", "a text")
        assert phases.read(file) == phase

    phases.record(file, {}, model, args)
    assert phases.read(file) == "", "of the start before"


def test_no_more_than_before_is_logged(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(tmp_path / "engine.phase", {"VLLM_LOGGING_LEVEL": "warning"}, str(tmp_path), EAGER)

    logger.info("Starting to load model %s...", "m")
    logger.warning("a warning")

    assert capsys.readouterr().out == "a warning\n"


@pytest.mark.parametrize("given", [{"VLLM_LOGGING_CONFIG_PATH": "/srv/own.json"}, {"VLLM_CONFIGURE_LOGGING": "0"}])
def test_a_configuration_of_the_operators_stays(tmp_path: Path, given: dict[str, str]) -> None:
    variables = dict(given)

    phases.record(tmp_path / "engine.phase", variables, str(tmp_path), EAGER)

    assert (variables, list(tmp_path.iterdir())) == (given, [])


def test_the_installed_vllm_logs_these_records() -> None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    root = Path(spec.origin).parent
    folders = (root / "v1", root / "compilation", root / "model_executor" / "model_loader")
    source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))

    assert [message for message, _ in phases.BEGINS if f'"{message}' not in source] == []

"""No library sends statistics home, nor a model to be converted, in whichever of our processes it is imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import need
from tests.support.system import ROOT

VARIABLES = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "DISABLE_SAFETENSORS_CONVERSION")


def said(module: str, words: str, **environment: str) -> str:
    """Return the first output of a process that imports a module of ours."""
    without = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    script = f"import os, {module}; {words}"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=without | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["api", "cli.up.installation", "jobs.settings", "workers.engines.model_folders"])
def test_telemetry_is_disabled_in_every_process_and_its_children(module: str) -> None:
    assert said(module, f"print(*map(os.environ.get, {VARIABLES}))") == "1 1 1 1"


def test_telemetry_setting_of_operator_is_preserved() -> None:
    assert said("workers", "print(os.environ['DO_NOT_TRACK'])", DO_NOT_TRACK="0") == "0"


def test_the_hubs_library_hears_it() -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        need("the hub's library", error)

    assert (
        said("cli.client.hub", "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)")
        == "True"
    )


def test_transformers_hears_it() -> None:
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        need("transformers", ModuleNotFoundError("transformers"))
    source = Path(found.submodule_search_locations[0]) / "modeling_utils.py"  # importing it takes 20 seconds
    asked = 'is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")'

    assert asked in source.read_text()
    assert (
        said("workers", f"from transformers.utils.import_utils import is_env_variable_true; print({asked})") == "True"
    )

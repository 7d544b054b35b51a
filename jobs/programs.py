"""Run the programs of `workers` that the command needs, in processes of their own: they load what it does not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.platform.children import environment

if TYPE_CHECKING:
    from jobs.settings import Settings

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
#: The exit status of a comparison that found differences; 1 is Python's own.
DIFFERS: Final = 3


def verify_vectors(data_dir: Path, *, repair: bool) -> subprocess.CompletedProcess[str]:
    """Compare the vector database with the rows in SQL; a status of `DIFFERS` says that they are not the same."""
    command = [sys.executable, "-m", "workers.retrieval.verification", *(["--repair"] if repair else [])]
    environment = {**os.environ, "NIGHTMILL_DATA_DIR": str(data_dir)}
    return subprocess.run(command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 (ours)


def probe_sandbox(*, forks: bool = False) -> subprocess.CompletedProcess[str]:
    """Confine a process as parsers of documents are, and print the parts of the sandbox that the kernel refuses.

    With `forks` confine it as python graders are.
    """
    command = [sys.executable, "-P", "-m", "workers.sandbox", *(["forks"] if forks else [])]
    return subprocess.run(  # noqa: S603 (ours)
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


def merge_adapter(config: "Settings", adapter: Path, base: str, output: Path, folder: Path | None) -> str:
    """Merge an adapter into the model `base` of the models file, or into the model in `folder`.

    Return why it could not be merged; empty when `output` has the merged model.
    """
    where = [str(folder.absolute())] if folder else []
    arguments = [str(adapter.absolute()), base, str(output.absolute()), *where]
    command = [sys.executable, "-m", "workers.engines.training.merging", *arguments]
    environment = {**os.environ, "NIGHTMILL_DATA_DIR": str(config.data_dir)}
    environment |= {"NIGHTMILL_MODELS_FILE": config.models_file} if config.models_file else {}
    done = subprocess.run(command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a reason"])[-1]

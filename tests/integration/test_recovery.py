"""The benchmark that kills everything and starts it again, at a tiny size: that it works, not what it measures."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(660)
def test_the_benchmark_of_a_recovery_loses_nothing_and_says_how_long_it_took(tmp_path: Path) -> None:
    words = ("--batches", "2", "--lines", "600", "--delay-ms", "100", "--folder", str(tmp_path))
    command = [sys.executable, "-m", "bench", "recovery", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 2 go on" in done.stdout
    assert "each custom_id once" in done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"

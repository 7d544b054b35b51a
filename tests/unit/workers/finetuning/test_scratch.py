"""The folders in which workers train: removed at the end, and those of dead workers by the next one."""

import subprocess
import sys
from pathlib import Path

from workers.finetuning import scratch

HOLD = """
import sys, pathlib
from workers.finetuning import scratch
with scratch.folder(pathlib.Path(sys.argv[1]), "ftjob-dead-1") as folder:
    (folder / "weights").write_bytes(b"0" * 10)
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "run" / "training").iterdir() if path.is_dir()}


def test_folder_is_empty_and_removed_at_the_end(tmp_path: Path) -> None:
    with scratch.folder(tmp_path, "ftjob-1-1") as folder:
        assert list(folder.iterdir()) == []
        (folder / "data").write_text("x")
        scratch.remove_abandoned_folders(tmp_path)
        with scratch.folder(tmp_path, "ftjob-2-1"):
            assert names(tmp_path) == {"ftjob-1-1", "ftjob-2-1"}

    assert names(tmp_path) == set()


def test_folder_of_a_killed_worker_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        scratch.remove_abandoned_folders(tmp_path)
        assert names(tmp_path) == {"ftjob-dead-1"}
        worker.kill()
        worker.wait()

    scratch.remove_abandoned_folders(tmp_path)

    assert names(tmp_path) == set()

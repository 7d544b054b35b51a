"""The environment of the trainer's process."""

from pathlib import Path

import pytest

from workers.engines.training.protocol import Spec
from workers.finetuning.trainer_process import TrainerProcess


def environment_of(folder: Path) -> dict[str, str]:
    """Start a trainer that computes nothing, and return the variables that it was started with."""
    (folder / "rows.jsonl").write_text("{}\n" * 8)
    spec = Spec(
        base="tiny", base_name="tiny", rows=str(folder / "rows.jsonl"), output=str(folder), learning_rate=1e-4,
        batch_size=2, n_epochs=1, seed=1, threads=3,
    )  # fmt: skip
    process = TrainerProcess(spec, folder, "tests.support.fake_trainer")
    try:
        pairs = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)
    finally:
        process.close()


def test_trainer_threads_wait_passively_unless_operator_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    usual = environment_of(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")

    assert (usual["OMP_WAIT_POLICY"], usual["OMP_NUM_THREADS"]) == ("PASSIVE", "3")
    assert environment_of(tmp_path)["OMP_WAIT_POLICY"] == "ACTIVE"

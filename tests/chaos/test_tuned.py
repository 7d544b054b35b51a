"""The judgement of fine-tuning jobs finds what it is to find."""

import hashlib
from pathlib import Path

import pytest

from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.platform.storage import DiskStorage
from tests.support import tuning_oracle
from tests.support.fake_trainer import loss_of, weights_of
from tests.support.idle_workers import BASE
from tests.support.oracle import Told
from tests.support.tuning_oracle import STEPS, Answered, Tuning
from workers.engines.training import checkpoint_folder

NAME = "ft:stub-base:default:tuning-000:abc"
SEED = 7
CURVE = {step: loss_of(SEED, step) for step in range(1, STEPS + 1)}


def tuning() -> Tuning:
    models = {NAME: STEPS, f"{NAME}:ckpt-step-4": 4}
    return Tuning("tuning-000", SEED, "ftjob-1", status="succeeded", ended=True, models=models)


def answer(model: str, weights: str, named: str = "") -> Answered:
    return Answered(model, named or model, "Say it", f"{weights} 0123")


def test_answers_of_the_right_adapters_pass() -> None:
    right = [answer(name, weights_of(SEED, step)) for name, step in tuning().models.items()] + [answer(BASE, "echo")]

    assert list(tuning_oracle.answered(right, [tuning()])) == []


@pytest.mark.parametrize(
    "wrong",
    [
        answer(NAME, weights_of(SEED, 4)),
        answer(NAME, weights_of(SEED + 1, STEPS)),
        answer(NAME, "echo"),
        answer(BASE, weights_of(SEED, STEPS)),
        answer(NAME, weights_of(SEED, STEPS), named=BASE),
    ],
)
def test_answer_of_another_adapter_is_blamed(wrong: Answered) -> None:
    assert len(list(tuning_oracle.answered([wrong], [tuning()]))) == 1


def test_steps_are_there_once_with_the_losses_of_their_training() -> None:
    assert list(tuning_oracle.losses(tuning(), CURVE, STEPS)) == []
    assert list(tuning_oracle.losses(tuning(), CURVE, STEPS + 1))
    assert list(tuning_oracle.losses(tuning(), {step: loss for step, loss in CURVE.items() if step != 5}, STEPS - 1))
    assert list(tuning_oracle.losses(tuning(), CURVE | {5: 9.0}, STEPS))


def test_job_end_is_delivered_as_single_event() -> None:
    one = Told("/slow/all", "wh_1", "evt_1", "fine_tuning.job.succeeded", "ftjob-1")
    other = Told("/slow/all", "wh_2", "evt_2", "fine_tuning.job.succeeded", "ftjob-1")
    failed = Told("/slow/all", "wh_1", "evt_1", "fine_tuning.job.failed", "ftjob-1")

    assert tuning_oracle.told(tuning(), [one, one]) == []
    assert [bool(tuning_oracle.told(tuning(), hooks)) for hooks in ([], [one, other], [failed])] == [True] * 3


@pytest.mark.parametrize("damage", ["", "optimizer.pt", "adapter_model.safetensors", "manifest.json", "nothing there"])
def test_checkpoint_is_whole_only_with_every_byte(tmp_path: Path, damage: str) -> None:
    storage, folder, location = DiskStorage(tmp_path / "storage"), tmp_path / "made", "training/ftjob-1/00000004-1"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(weights_of(SEED, 4))
    (folder / "optimizer.pt").write_text("moments")
    checkpoint_folder.seal(folder, {"step": 4})
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    for path in folder.iterdir():
        if damage != "nothing there":
            storage.put(f"{location}/{path.name}", b"{}" if path.name == damage else path.read_bytes())
    row = FinetuneCheckpoint(step=4, location=location, sha256=sha256, keeps_optimizer=True)

    assert bool(list(tuning_oracle.whole(storage, row))) == bool(damage)
    row.keeps_optimizer = False
    assert bool(list(tuning_oracle.whole(storage, row))) == (damage not in ("", "optimizer.pt"))

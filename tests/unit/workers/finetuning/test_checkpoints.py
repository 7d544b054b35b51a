"""Checkpoints in the storage: fetched only as they were stored, without an optimiser once there are newer ones."""

from pathlib import Path

import pytest

from jobs.errors import NotFound
from jobs.platform.storage import DiskStorage
from jobs.registry.manifests import MANIFEST
from workers.engines.training import checkpoint_folder
from workers.engines.training.checkpoint_folder import DamagedCheckpoint
from workers.finetuning import checkpoints

TARGET = checkpoints.location("ftjob-1", 4, 1)


@pytest.fixture
def storage(tmp_path: Path) -> DiskStorage:
    return DiskStorage(tmp_path / "storage")


@pytest.fixture
def sha256(storage: DiskStorage, tmp_path: Path) -> str:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"moments")
    checkpoint_folder.seal(folder, {"step": 4})
    columns = checkpoints.upload(storage, folder, TARGET)
    assert columns["bytes"] == len(b"weights") + len(b"moments")
    return str(columns["sha256"])


def test_checkpoint_comes_back_byte_for_byte(storage: DiskStorage, sha256: str, tmp_path: Path) -> None:
    manifest = checkpoints.download(storage, TARGET, sha256, tmp_path / "fetched", resume=True)

    assert manifest.run == {"step": 4}
    assert (tmp_path / "fetched" / "optimizer.pt").read_bytes() == b"moments"


def test_checkpoint_with_another_manifest_is_damaged(storage: DiskStorage, sha256: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_model.safetensors").write_bytes(b"other weights")
    (other / "optimizer.pt").write_bytes(b"moments")
    checkpoint_folder.seal(other, {"step": 4})
    checkpoints.upload(storage, other, TARGET)

    with pytest.raises(DamagedCheckpoint, match=MANIFEST):
        checkpoints.download(storage, TARGET, sha256, tmp_path / "fetched")


def test_checkpoint_with_changed_weights_is_damaged(storage: DiskStorage, sha256: str, tmp_path: Path) -> None:
    storage.put(f"{TARGET}/adapter_model.safetensors", b"wheights")

    with pytest.raises(DamagedCheckpoint, match="adapter_model"):
        checkpoints.download(storage, TARGET, sha256, tmp_path / "fetched")


def test_run_is_not_resumed_without_an_optimiser(storage: DiskStorage, sha256: str, tmp_path: Path) -> None:
    checkpoints.remove_optimizer(storage, [TARGET])

    assert checkpoints.download(storage, TARGET, sha256, tmp_path / "model").run == {"step": 4}
    with pytest.raises(NotFound):
        checkpoints.download(storage, TARGET, sha256, tmp_path / "fetched", resume=True)


def test_uploads_that_no_row_names_are_removed(storage: DiskStorage, sha256: str) -> None:
    storage.put(f"{checkpoints.location('ftjob-1', 6, 2)}/optimizer.pt", b"half of it")

    checkpoints.remove_partial_uploads(storage, "ftjob-1", [TARGET])

    assert list(storage.folders("training/ftjob-1")) == [TARGET.rpartition("/")[2]]
    assert sha256

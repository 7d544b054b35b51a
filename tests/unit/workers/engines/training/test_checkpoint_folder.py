"""Folders of checkpoints: complete with their manifest, refused when a byte has changed."""

from pathlib import Path

import pytest

from jobs.registry.manifests import MANIFEST
from workers.engines.training import checkpoint_folder
from workers.engines.training.checkpoint_folder import DamagedCheckpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-3"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "nested" / "vocab.txt").write_bytes(b"a\nb\n")
    (folder / "optimizer.pt").write_bytes(b"moments")
    return folder


def test_the_manifest_names_every_file_and_the_run(folder: Path) -> None:
    written = checkpoint_folder.seal(folder, {"step": 3})

    assert checkpoint_folder.verify(folder, resume=True) == written
    assert written.run == {"step": 3}
    assert sorted(written.files) == ["adapter_model.safetensors", "nested/vocab.txt", "optimizer.pt"]
    assert sorted(written.model_files) == ["adapter_model.safetensors", "nested/vocab.txt"]
    assert written.files["nested/vocab.txt"].bytes == 4


def test_a_folder_without_a_manifest_is_not_complete(folder: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=MANIFEST):
        checkpoint_folder.verify(folder)


@pytest.mark.parametrize("data", [b"w3ights", b"weights and more", None])
def test_a_file_that_was_tampered_with_is_refused(folder: Path, data: bytes | None) -> None:
    checkpoint_folder.seal(folder, {})
    path = folder / "adapter_model.safetensors"
    path.unlink() if data is None else path.write_bytes(data)

    with pytest.raises(DamagedCheckpoint, match="adapter_model"):
        checkpoint_folder.verify(folder)


def test_missing_optimizer_is_accepted_unless_run_resumes(folder: Path) -> None:
    checkpoint_folder.seal(folder, {})
    (folder / "optimizer.pt").unlink()

    checkpoint_folder.verify(folder)
    with pytest.raises(DamagedCheckpoint, match="optimizer"):
        checkpoint_folder.verify(folder, resume=True)

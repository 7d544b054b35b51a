"""The folder of a checkpoint: model files, what a resumed run needs, and the manifest, which is written last.

    adapter_model.safetensors, adapter_config.json        the model (full: model.safetensors, config.json)
    tokenizer.json, …                                     its tokenizer and chat template
    optimizer.pt, scheduler.pt, rng_state.pth, …          RESUME: left out once the run has ended
    manifest.json                                         SHA-256 and size of each of these, and what describes the run

A folder without a manifest is not complete. No torch here.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from jobs.platform.storage import CHUNK, sync_path
from jobs.registry.manifests import MANIFEST, Manifest, ManifestFile, decode_manifest


class DamagedCheckpoint(Exception):
    """A file is missing, or its bytes are not those that the manifest names."""


_encoder: Final = msgspec.json.Encoder(order="sorted")


def seal(folder: Path, run: Mapping[str, Any]) -> Manifest:
    """Sync every file of a folder to the disk, then write and sync the manifest; return the manifest."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = _file(path)
        sync_path(path)
    manifest = Manifest(files, dict(run))
    target = folder / MANIFEST
    target.write_bytes(_encoder.encode(manifest))
    for path in (target, *(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent):
        sync_path(path)
    return manifest


def verify(folder: Path, *, resume: bool = False) -> Manifest:
    """Return the manifest of a folder whose files are all as the manifest says. Raises Damaged.

    `resume`: the files that a resumed run reads must be there, too.
    """
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read.") from error
    for name, file in (manifest.files if resume else manifest.model_files).items():
        try:
            actual = _file(folder / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{name} cannot be read.") from error
        if actual != file:
            raise DamagedCheckpoint(f"{name} does not have the bytes that the manifest names.")
    return manifest


def _file(path: Path) -> ManifestFile:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return ManifestFile(digest.hexdigest(), size)

"""The adapters of tuned models on this machine: fetched from the deployment's storage, their hashes checked.

    row: SHA-256 of the manifest ──▶ manifest.json: SHA-256 of each file ──▶ files
    storage: training/<job>/<step>-<epoch>/ ──▶ temporary folder ── every hash is right ──▶ <data>/run/adapters/<name>
                                                     └── one is wrong ──▶ TamperedAdapter, nothing is left

A folder that is there under its name is complete. Its files are hashed again by each process that uses them first.
"""

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from jobs.platform.storage import CHUNK, Storage
from jobs.registry.manifests import MANIFEST, decode_manifest
from workers.engines import probes
from workers.engines.port import Adapter

#: What an engine reads of a result; it may have more.
NEEDED: Final = ("adapter_config.json", "adapter_model.safetensors")
OPTIONAL: Final = (probes.FILE,)
_PARTIAL: Final = ".partial-"
_MANIFEST_BYTES: Final = 1 << 20
_MOST_FOLDERS: Final = 64  # on this machine
_YOUNG_SECONDS: Final = 3600.0  # one that was fetched since is not removed


class TamperedAdapter(Exception):
    """The files of a tuned model are not those that were trained."""


def name_of(sha256: str) -> str:
    """Return the name under which engines know the adapter with these bytes."""
    return f"lora-{sha256[:16]}"


class AdapterFiles:
    """The local folders of adapters. For any thread."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def ready(self, sha256: str) -> Adapter | None:
        """Return the adapter if this process has checked its local files; in no time."""
        name = name_of(sha256)
        folder = self._folder / name
        return Adapter(name, sha256, folder) if name in self._checked and folder.is_dir() else None

    def fetch(self, location: str, sha256: str) -> Adapter:
        """Return the adapter at `location` in the storage, whose manifest has this SHA-256, in a local folder.

        Raises TamperedAdapter, NotFound, StorageUnavailable, StorageFull.
        """
        hashes = self._wanted(location, sha256)
        name = name_of(sha256)
        folder = self._folder / name
        with self._lock:
            if not _is_whole(folder, hashes):
                self._copy(location, folder, hashes)
            self._checked.add(name)
        return Adapter(name, sha256, folder)

    def _wanted(self, location: str, sha256: str) -> dict[str, str]:
        """Return the hashes of the files that an engine reads."""
        with self._storage.reader(f"{location}/{MANIFEST}") as source:
            data = source.read(_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TamperedAdapter("Its manifest is not the one that was written in training.")
        files = decode_manifest(data).files
        if missing := [file for file in NEEDED if file not in files]:
            raise TamperedAdapter(f"Its manifest does not name {', '.join(missing)}.")
        return {file: files[file].sha256 for file in (*NEEDED, *OPTIONAL) if file in files}

    def keep(self, hashes: Collection[str]) -> None:
        """Remove the local files of all adapters but those with these SHA-256."""
        needed = set(map(name_of, hashes))
        with self._lock:
            for folder in self._folder.glob("lora-*"):
                if folder.name not in needed:
                    self._checked.discard(folder.name)
                    shutil.rmtree(folder, ignore_errors=True)

    def _copy(self, location: str, folder: Path, hashes: Mapping[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        temporary = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._folder))
        try:
            for file, sha256 in hashes.items():
                with self._storage.reader(f"{location}/{file}") as source, (temporary / file).open("wb") as copy:
                    if _hash(source, copy) != sha256:
                        raise TamperedAdapter(f"Its file {file} is not the one that was trained.")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError:
            if not _is_whole(folder, hashes):  # else another process of this machine was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove what a killed process left, and the folders that were fetched first, so that the disk stays free."""
        folders = sorted((path.stat().st_mtime, path) for path in self._folder.iterdir() if path.is_dir())
        too_many = max(0, len(folders) + 1 - _MOST_FOLDERS)
        for number, (fetched, folder) in enumerate(folders):
            unused = number < too_many or folder.name.startswith(_PARTIAL)
            if unused and time.time() - fetched > _YOUNG_SECONDS:
                self._checked.discard(folder.name)
                shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path, hashes: Mapping[str, str]) -> bool:
    def is_right(file: str) -> bool:
        path = folder / file
        if not path.is_file():
            return False
        with path.open("rb") as source:
            return _hash(source) == hashes[file]

    return all(map(is_right, hashes))


def _hash(source: BinaryIO, copy: BinaryIO | None = None) -> str:
    """Return the SHA-256 of what is read, and write it to `copy`."""
    digest = hashlib.sha256()
    for data in _chunks(source):
        digest.update(data)
        if copy is not None:
            copy.write(data)
    return digest.hexdigest()


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while data := source.read(CHUNK):
        yield data

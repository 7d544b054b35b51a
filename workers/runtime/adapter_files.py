"""The files of tuned models on this machine: fetched from the deployment's storage, their hashes checked.

    row: SHA-256 of the manifest ──▶ manifest.json: SHA-256 of each file ──▶ files
    storage: training/<job>/<step>-<epoch>/ ──▶ temporary folder ── every hash is right ──▶ <data>/run/adapters/<name>
                                                     └── one is wrong ──▶ TamperedAdapter, nothing is left

A folder that is there under its name is complete. Its files are hashed again by each process that uses them first.
"""

import errno
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from jobs.errors import StorageFull
from jobs.platform.storage import CHUNK, Storage
from jobs.registry.manifests import MANIFEST, decode_manifest
from workers.engines import probes
from workers.engines.port import Adapter

#: What an engine reads of a result; it may have more.
NEEDED: Final = ("adapter_config.json", "adapter_model.safetensors")
NEEDED_WHOLE: Final = ("config.json",)  # of a model with weights of its own, of which all files are fetched
OPTIONAL: Final = (probes.FILE,)
_PARTIAL: Final = ".partial-"
_MANIFEST_BYTES: Final = 1 << 20
_MAX_FOLDERS: Final = 64  # of adapters, on this machine
_MAX_WHOLE: Final = 3  # of models with weights of their own
_YOUNG_SECONDS: Final = 3600.0  # an adapter that was fetched since is not removed


class TamperedAdapter(Exception):
    """The files of a tuned model are not those that were trained."""


def name_of(sha256: str, *, whole: bool = False) -> str:
    """Return the name under which engines know the adapter, or the `whole` model, with these bytes."""
    return f"{_prefix(whole)}{sha256[:16]}"


def _prefix(whole: bool) -> str:
    return "full-" if whole else "lora-"


class AdapterFiles:
    """The local folders of adapters, or of models with `whole` weights of their own. For any thread."""

    def __init__(self, storage: Storage, folder: Path, *, whole: bool = False) -> None:
        self._storage, self._folder, self.whole = storage, folder, whole
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def ready(self, sha256: str) -> Adapter | None:
        """Return the adapter if this process has checked its local files; in no time."""
        adapter = self._adapter(sha256)
        return adapter if adapter.name in self._checked and adapter.folder.is_dir() else None

    def fetch(self, location: str, sha256: str) -> Adapter:
        """Return the adapter at `location` in the storage, whose manifest has this SHA-256, in a local folder.

        Raises TamperedAdapter, NotFound, StorageUnavailable, StorageFull.
        """
        hashes = self._hashes(location, sha256)
        adapter = self._adapter(sha256)
        with self._lock:
            if not _is_complete(adapter.folder, hashes):
                self._copy(location, adapter.folder, hashes)
            self._checked.add(adapter.name)
        return adapter

    def _adapter(self, sha256: str) -> Adapter:
        name = name_of(sha256, whole=self.whole)
        return Adapter(name, sha256, self._folder / name, self.whole)

    def _hashes(self, location: str, sha256: str) -> dict[str, str]:
        """Return the hashes of the files that an engine reads."""
        with self._storage.reader(f"{location}/{MANIFEST}") as source:
            data = source.read(_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TamperedAdapter("Its manifest is not the one that was written in training.")
        files = decode_manifest(data).model_files
        if missing := [file for file in (NEEDED_WHOLE if self.whole else NEEDED) if file not in files]:
            raise TamperedAdapter(f"Its manifest does not name {', '.join(missing)}.")
        read = files if self.whole else [file for file in (*NEEDED, *OPTIONAL) if file in files]
        return {file: files[file].sha256 for file in read}

    def keep(self, hashes: Collection[str]) -> None:
        """Remove the local files of all adapters but those with these SHA-256."""
        kept = {name_of(sha256, whole=self.whole) for sha256 in hashes}
        with self._lock:
            for folder in self._folder.glob(f"{_prefix(self.whole)}*"):
                if folder.name not in kept:
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
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull from error
            if not _is_complete(folder, hashes):  # else another process of this machine was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove what a killed process left, and the folders that were fetched first, so that the disk stays free."""
        folders = sorted((path.stat().st_mtime, path) for path in self._folder.iterdir() if path.is_dir())
        too_many = max(0, len(folders) + 1 - (_MAX_WHOLE if self.whole else _MAX_FOLDERS))
        for number, (fetched, folder) in enumerate(folders):
            partial = folder.name.startswith(_PARTIAL)
            # whole models are large: an engine that misses its model's files has them fetched again
            protected = 0.0 if self.whole and not partial else _YOUNG_SECONDS
            if (partial or number < too_many) and time.time() - fetched > protected:
                self._checked.discard(folder.name)
                shutil.rmtree(folder, ignore_errors=True)


def _is_complete(folder: Path, hashes: Mapping[str, str]) -> bool:
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

"""A stored file as a path of this machine, for libraries that read no other."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import NotFound
from jobs.platform.storage import CHUNK, DiskStorage, Storage


@contextmanager
def on_disk(storage: Storage, path: str) -> Iterator[Path]:
    """Raises NotFound, StorageAway."""
    if isinstance(storage, DiskStorage):
        here = storage.root / path
        if not here.is_file():
            raise NotFound("What was stored is gone.")
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
        copy = Path(folder) / "file"
        with storage.reader(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        yield copy

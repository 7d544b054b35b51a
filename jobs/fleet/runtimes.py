"""Records of the fastest runtime for an embedding model on a machine; engines and `doctor` read them.

    <data_dir>/models/runtimes/<key>.json   the figures and the choice
                               <key>.onnx   if ONNX Runtime was chosen: written before the record

The key is a hash of the weights, the machine, the libraries' versions and the floor: if one changes, a new record is
measured. An unreadable record counts as missing.
"""

import logging
import os
from pathlib import Path

import msgspec

from jobs.settings import Settings

log = logging.getLogger(__name__)


class Candidate(msgspec.Struct, frozen=True):
    """A runtime of an embedding model.

    The cosines compare with PyTorch's float32 vectors; `refused` is the reason if it cannot be chosen.
    """

    runtime: str
    dtype: str
    texts_per_second: float = 0.0
    mean_cosine: float = 0.0
    least_cosine: float = 0.0
    making_seconds: float = 0.0
    file_bytes: int = 0
    refused: str = ""

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.dtype}"


class RuntimeRecord(msgspec.Struct, frozen=True):
    model: str
    machine: str
    versions: dict[str, str]
    floor: float
    measured_at: int
    seconds: float
    candidates: tuple[Candidate, ...]
    chosen: int
    restricted_to: str = ""

    @property
    def choice(self) -> Candidate:
        return self.candidates[self.chosen]


def folder_of(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "models" / "runtimes"


def onnx_file(folder: Path, key: str) -> Path:
    return folder / f"{key}.onnx"


def read(folder: Path, key: str) -> RuntimeRecord | None:
    """Return the record of the key, if it exists with all its files."""
    record = _read(folder / f"{key}.json")
    if record and record.choice.runtime == "onnx" and not onnx_file(folder, key).exists():
        return None
    return record


def all_records(folder: Path) -> list[RuntimeRecord]:
    """Return the records of all machines that share the folder, newest first."""
    records = [record for path in folder.glob("*.json") if (record := _read(path))]
    return sorted(records, key=lambda record: record.measured_at, reverse=True)


def write(folder: Path, key: str, record: RuntimeRecord) -> None:
    """Write the record atomically, and remove the records that it replaces."""
    temporary = folder / f".{key}.new"
    with temporary.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / f"{key}.json")
    _remove_older(folder, key, record)


def forget(folder: Path, key: str) -> None:
    (folder / f"{key}.json").unlink(missing_ok=True)
    onnx_file(folder, key).unlink(missing_ok=True)


def _remove_older(folder: Path, key: str, record: RuntimeRecord) -> None:
    """Remove other records of the same model and machine, and model files without a record."""
    for path in folder.glob("*.json"):
        other = _read(path)
        if path.stem != key and other and (other.model, other.machine) == (record.model, record.machine):
            forget(folder, path.stem)
    for path in folder.glob("*.onnx"):
        if not (choice_record := _read(path.with_suffix(".json"))) or choice_record.choice.runtime != "onnx":
            path.unlink()


def _read(path: Path) -> RuntimeRecord | None:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=RuntimeRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("runtimes.unreadable", extra={"file": str(path), "error": str(error)})
        return None
    return record if 0 <= record.chosen < len(record.candidates) else None

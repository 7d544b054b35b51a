"""Records of measured runtimes: whole or not there, and none that lies about its file."""

from pathlib import Path

import msgspec

from jobs.fleet import runtimes
from jobs.fleet.runtimes import Candidate, RuntimeRecord

TORCH = Candidate("torch", "float32", 10, 1, 1)
ONNX = Candidate("onnx", "float32", 30, 1, 1)


def record(chosen: int = 0, model: str = "mini", at: int = 1, machine: str = "cpu") -> RuntimeRecord:
    return RuntimeRecord(model, machine, {"torch": "2"}, 0.999, at, 3.0, (TORCH, ONNX), chosen)


def test_written_record_is_read_back(tmp_path: Path) -> None:
    runtimes.write(tmp_path, "k", record())

    assert runtimes.read(tmp_path, "k") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"]


def test_record_with_missing_file_is_ignored(tmp_path: Path) -> None:
    runtimes.onnx_file(tmp_path, "k").touch()
    runtimes.write(tmp_path, "k", record(chosen=1))
    there = runtimes.read(tmp_path, "k")
    runtimes.onnx_file(tmp_path, "k").unlink()

    assert there == record(chosen=1)
    assert runtimes.read(tmp_path, "k") is None


def test_record_that_can_not_be_read_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"model": "mi')
    (tmp_path / "none.json").write_bytes(msgspec.json.encode(record(chosen=7)))

    assert [runtimes.read(tmp_path, key) for key in ("half", "none", "absent")] == [None] * 3
    assert runtimes.all_records(tmp_path) == []


def test_new_record_supersedes_those_of_the_same_model_and_machine(tmp_path: Path) -> None:
    for key, older in (("old", record(1)), ("other", record(1, model="maxi")), ("far", record(1, machine="arm"))):
        runtimes.onnx_file(tmp_path, key).touch()
        runtimes.write(tmp_path, key, older)
    runtimes.onnx_file(tmp_path, "orphan").touch()

    runtimes.write(tmp_path, "new", record(at=2))

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "far.json", "far.onnx", "new.json", "other.json", "other.onnx",
    ]  # fmt: skip
    assert runtimes.all_records(tmp_path)[0] == record(at=2)

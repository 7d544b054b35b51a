"""TensorBoard's event file: records that are whole, and each number under its tag."""

import struct
from collections.abc import Iterator

from jobs.finetuning.tables import FinetuneStep
from workers.finetuning import tensorboard


def step(number: int, **columns: float | None) -> FinetuneStep:
    empty = dict.fromkeys(tensorboard.TAGS.values())
    values = empty | {"train_loss": 1.0, "learning_rate": 1e-4, "epoch": 0.5} | columns
    return FinetuneStep(job_id="ftjob-1", step=number, created_at=1000.25 + number, **values)


def records(data: bytes) -> Iterator[bytes]:
    """Return the events of a file after a look at both checksums of each."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = data[12 : 12 + length]
        checksums = data[8:12], data[12 + length : 16 + length]
        assert [masked(data[:8]), masked(event)] == [struct.unpack("<I", part)[0] for part in checksums]
        yield event
        data = data[16 + length :]


def masked(data: bytes) -> int:
    crc = tensorboard.crc32c(data)
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8 & 0xFFFFFFFF


def test_the_checksum_is_the_standards() -> None:
    assert tensorboard.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA  # of RFC 3720


def test_a_file_has_its_version_and_an_event_for_each_step() -> None:
    data = b"".join(tensorboard.encode([step(1), step(300, valid_loss=2.5)], 1000.0))

    version, first, second = records(data)

    assert version == b"\x09" + struct.pack("<d", 1000.0) + b"\x1a\x0dbrain.Event:2"
    assert first.startswith(b"\x09" + struct.pack("<d", 1001.25) + b"\x10\x01\x2a")
    assert second.startswith(b"\x09" + struct.pack("<d", 1300.25) + b"\x10\xac\x02\x2a")
    assert b"train/loss\x15" + struct.pack("<f", 1.0) in first
    assert b"valid/loss" not in first
    assert b"valid/loss\x15" + struct.pack("<f", 2.5) in second


def test_tensorboard_knows_the_file_by_its_name() -> None:
    assert tensorboard.file_name("ftjob-1", 1000.9) == "events.out.tfevents.1000.ftjob-1"

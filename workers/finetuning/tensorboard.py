"""TensorBoard's event file of a training, written without TensorBoard: records with checksums, one for each step.

    record   length (8 bytes) · its checksum (4) · event · the event's checksum (4)
    event    1 wall time · 2 step · 3 the file's version · 5 summary ─▶ values: 1 tag · 2 number

Events are protobuf messages of these fields alone; checksums are masked CRC-32C, as TFRecord files have them.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from jobs.finetuning.tables import FinetuneStep

#: The columns of a step by the tag under which TensorBoard draws them; a slash groups charts.
TAGS: Final = {
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "learning_rate",
    "train/tokens_per_second": "tokens_per_second",
    "train/memory_bytes": "memory_bytes",
    "train/epoch": "epoch",
    "valid/loss": "valid_loss",
    "valid/accuracy": "valid_accuracy",
}
_VERSION: Final = b"brain.Event:2"
_POLYNOMIAL: Final = 0x82F63B78
_MASK: Final = 0xA282EAD8


def file_name(job_id: str, created_at: float) -> str:
    """Return a name by which TensorBoard knows an event file."""
    return f"events.out.tfevents.{int(created_at)}.{job_id}"


def encode(steps: Iterable[FinetuneStep], created_at: float) -> Iterator[bytes]:
    """Return the records of a file that has these steps: first the version, then an event for each step."""
    yield _record(_number(1, created_at) + _bytes(3, _VERSION))
    for step in steps:
        values = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in metrics(step))
        yield _record(_number(1, step.created_at) + b"\x10" + _varint(step.step) + _bytes(5, values))


def metrics(step: FinetuneStep) -> Iterator[tuple[str, float]]:
    """Return the numbers that a step has, each with its tag."""
    for tag, column in TAGS.items():
        value = getattr(step, column)
        if value is not None:
            yield tag, float(value)


def _record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _number(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _table() -> Iterator[int]:
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)  # noqa: PLW2901 (the register of a shift)
        yield crc


_TABLE: Final = tuple(_table())

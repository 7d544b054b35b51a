"""Archives that want to be more than they say."""

import io
import struct
import zipfile
import zlib

import pytest

from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import office
from workers.retrieval.parsing.contract import FileRefused, ParserLimits

LIMITS = ParserLimits(text_bytes=1 << 20)  # 8 MiB unpacked


def refused(data: bytes, limits: ParserLimits = LIMITS) -> str:
    with pytest.raises(FileRefused) as no:
        office.check_archive(data, limits)
    assert no.value.code == "invalid_file"
    return no.value.message


def test_ordinary_document_passes() -> None:
    """Pass where no archive is refused."""
    office.check_archive(samples.docx(samples.paragraph("x"), {"word/media/a.png": bytes(100_000)}), LIMITS)
    office.check_archive(
        samples.docx(samples.paragraph("x"), {"word/embeddings/a.xlsx": samples.xlsx([["a"]])}), LIMITS
    )


def test_bomb_that_says_so_is_not_unpacked() -> None:
    assert "unpacks to more" in refused(samples.packed({"a": bytes(9 << 20)}))


def test_bomb_that_lies_about_its_size_is_counted() -> None:
    honest = samples.packed({"a": bytes(9 << 20)})

    assert "unpacks to more" in refused(samples.declared(honest, 10, zlib.crc32(bytes(10))))


def test_entry_that_holds_more_than_it_says_is_damaged() -> None:
    honest = samples.packed({"a": bytes(1000)})

    assert "damaged" in refused(samples.declared(honest, 10, zlib.crc32(bytes(10))))


def test_bombs_inside_of_archives_count_too() -> None:
    inner = samples.packed({"a": bytes(5 << 20)})

    assert "unpacks to more" in refused(samples.packed({"x.zip": inner, "y.bin": inner}))


def test_archives_inside_of_archives_are_looked_into_once() -> None:
    inner = samples.packed({"b.zip": samples.packed({"a": b"x"})}, zipfile.ZIP_STORED)

    assert "archives inside" in refused(samples.packed({"c.zip": inner}))


def test_too_many_parts_are_refused() -> None:
    assert "parts" in refused(samples.packed({str(n): b"" for n in range(office.ENTRIES + 1)}))


def test_parts_that_overlap_are_refused() -> None:
    data = samples.packed({"a": b"x" * 100, "b": b"y" * 100})
    second = data.index(b"PK\x03\x04", 4)
    last = data.rindex(b"PK\x01\x02")
    changed = bytearray(data)
    changed[last + 42 : last + 46] = struct.pack("<I", 0)
    assert second > 0

    assert "overlap" in refused(bytes(changed))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_billion_laughs_are_refused(encoding: str) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]><x>&l9;</x>'.encode(encoding)

    assert "XML entities" in refused(samples.packed({"word/document.xml": bomb}))


def test_entity_is_found_across_the_border_of_two_pieces() -> None:
    padding = b" " * (len(b"<x/>") + (1 << 16) - 8)

    assert "XML entities" in refused(samples.packed({"a.xml": padding + b"<!ENTITY a 'b'>"}))


def test_encrypted_part_says_so() -> None:
    changed = bytearray(samples.packed({"a": b"x"}))
    changed[6] |= 1
    changed[changed.rindex(b"PK\x01\x02") + 8] |= 1

    assert "encrypted" in refused(bytes(changed))


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_damaged_archive_is_invalid(cut: int) -> None:
    assert "damaged" in refused(samples.docx(samples.paragraph("x"))[:cut])


def test_method_that_is_not_read_here_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as made:
        made.writestr("a", b"x" * 100)

    assert "damaged" in refused(file.getvalue())


@pytest.mark.parametrize("cut", [slice(0, 4), slice(26, 28)], ids=["its mark", "the length of its name"])
def test_part_that_does_not_lie_where_the_archive_says_is_damaged(cut: slice) -> None:
    data = bytearray(samples.packed({"a": bytes(1000)}))
    data[cut] = b"\xff" * (cut.stop - cut.start)

    assert "damaged" in refused(bytes(data))

"""When a document says it was written: read as it is said, never guessed."""

import pytest

from tests.unit.workers.retrieval.parsing import samples
from tests.unit.workers.retrieval.parsing.test_formats import needs_kreuzberg
from workers.retrieval.parsing import blocks, parser_child
from workers.retrieval.parsing.contract import ParserLimits


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("2024-01-31T23:30:00-01:00", "2024-02-01T00:30:00Z"),
        ("2024-01-31T10:00:00.123+02:00", "2024-01-31T08:00:00Z"),
        ("2024-01-31T10:00:00", "2024-01-31"),  # nobody knows which moment that was
        ("2024-01-31 10:00", "2024-01-31"),
        ("2024-01", "2024-01"),
        ("2024", "2024"),
        ("D:20240131120000+01'00'", "2024-01-31T11:00:00Z"),
        ("D:20240131120000+01'00", "2024-01-31T11:00:00Z"),
        ("D:20240131120000Z", "2024-01-31T12:00:00Z"),
        ("D:20240131120000Z00'00'", "2024-01-31T12:00:00Z"),
        ("D:202401311200-0530", "2024-01-31T17:30:00Z"),
        ("D:20240131120000", "2024-01-31"),
        ("D:20240131", "2024-01-31"),
        ("D:2024", "2024"),
        ("Wed, 31 Jan 2024 12:00:00 +0100", "2024-01-31T11:00:00Z"),
        ("Wed, 31 Jan 2024 12:00:00 -0000", "2024-01-31"),
        ("31 Jan 2024 12:00 GMT", "2024-01-31T12:00:00Z"),
        ("", None),
        ("yesterday", None),
        ("2024-13-01", None),
        ("2024-02-30", None),
        ("D:20240231", None),
        ("D:20240131250000Z", None),
        ("0000", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("1" * 10_000, None),
        ("\u0662\u0660\u0662\u0664-01-31", None),
        ("D:\u0662\u0660\u0662\u0664", None),
    ],
)
def test_stated_dates_are_read(said: str, found: str | None) -> None:
    assert blocks.first_date(said) == found


def test_first_valid_date_is_used() -> None:
    assert blocks.first_date(None, "", "soon", "2024-01-31", "2025-01-01") == "2024-01-31"
    assert blocks.first_date() is None


def time_of(data: bytes, name: str) -> str | None:
    return parser_child.read_format(data, name, ParserLimits()).time


def test_pdf_time_is_modification_or_else_creation_date() -> None:
    both = {"CreationDate": "D:20230101000000Z", "ModDate": "D:20240131120000+01'00'"}

    assert time_of(samples.pdf([["x"]], facts=both), "a.pdf") == "2024-01-31T11:00:00Z"
    assert time_of(samples.pdf([["x"]], facts={"CreationDate": "D:2023"}), "a.pdf") == "2023"
    assert time_of(samples.pdf([["x"]]), "a.pdf") is None


@pytest.mark.parametrize(
    ("head", "body", "found"),
    [
        ('<meta property="article:published_time" content="2024-01-31T10:00:00Z">', "", "2024-01-31T10:00:00Z"),
        (
            '<meta name="date" content="2023-01-01"><meta property="article:modified_time" content="2024-01-31">',
            "",
            "2024-01-31",
        ),
        ('<meta name="DC.date" content="2024-01">', "", "2024-01"),
        ("", '<p><time datetime="2024-01-31">today</time>', "2024-01-31"),
        ("", '<time datetime="2023-05-05">a</time><time itemprop="datePublished" datetime="2024-01-31">', "2024-01-31"),
        ("", '<time datetime="2023-05-05">party</time> <time datetime="2024-01-31">other</time>', None),
        ('<meta name="date">', "<time>now</time>", None),
    ],
)
def test_html_time_is_read_from_metadata_and_time_elements(head: str, body: str, found: str | None) -> None:
    page = f"<!doctype html><html><head>{head}</head><body>Text {body}</body></html>"

    assert time_of(page.encode(), "a.html") == found


def test_markdown_time_is_read_from_front_matter() -> None:
    assert time_of(b"---\ntitle: A\ndate: 2024-01-31\n---\nText", "a.md") == "2024-01-31"
    assert (
        time_of(b"---\ndate: 2023-01-01\nlastmod: '2024-01-31T10:00:00Z'\n---\nText", "a.md") == "2024-01-31T10:00:00Z"
    )
    assert time_of(b"Text\n\ndate: 2024-01-31\n", "a.md") is None


@needs_kreuzberg
def test_office_mail_and_epub_times_are_read_from_metadata() -> None:
    times = (
        "<dcterms:created>2023-01-01T00:00:00Z</dcterms:created>"
        "<dcterms:modified>2024-01-31T10:00:00Z</dcterms:modified>"
    )
    core = (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
        f'xmlns:dcterms="http://purl.org/dc/terms/">{times}</cp:coreProperties>'
    )
    word = samples.docx(samples.paragraph("x"), {"docProps/core.xml": core})
    mail = b"From: a@b.example\r\nTo: c@d.example\r\nDate: Wed, 31 Jan 2024 12:00:00 +0100\r\n\r\nThe body.\r\n"

    assert time_of(word, "a.docx") == "2024-01-31T10:00:00Z"
    assert time_of(mail, "a.eml") == "2024-01-31T11:00:00Z"
    assert (
        time_of(samples.epub("T</dc:title><dc:date>2024-01-31</dc:date><dc:title>", "<p>x</p>"), "a.epub")
        == "2024-01-31"
    )
    assert time_of(samples.docx(samples.paragraph("x")), "a.docx") is None

"""Documents of every format are read from small real files, also under wrong names."""

import pytest

from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import blocks, office, parser_child, plain
from workers.retrieval.parsing.blocks import Laid
from workers.retrieval.parsing.contract import FileRefused, ParserLimits

needs_kreuzberg = pytest.mark.usefixtures("kreuzberg")


def laid(data: bytes, filename: str, limits: ParserLimits | None = None) -> Laid:
    limits = limits or ParserLimits()
    return blocks.lay(parser_child.read_format(data, filename, limits), limits)


def kinds(document: Laid) -> list[str]:
    return [block.kind for block in document.blocks]


def refusal(data: bytes, filename: str, limits: ParserLimits | None = None) -> FileRefused:
    with pytest.raises(FileRefused) as no:
        laid(data, filename, limits)
    return no.value


# PDF


def test_pdf_gives_pages_and_the_title_of_its_metadata() -> None:
    found = laid(samples.pdf([["First page."], ["Second page,", "two lines."]], title="A title"), "a.pdf")

    assert found.text == "First page.\n\nSecond page,\ntwo lines."
    assert [block.page for block in found.blocks] == [1, 2]
    assert found.title == "A title"


def test_pdf_outline_becomes_sections_where_its_entries_are_found_on_the_page() -> None:
    pages = [["Preface words", "1 Cats", "They purr."], ["2 Dogs", "They bark."]]

    found = laid(samples.pdf(pages, outline=[("Cats", 0), ("2 Dogs", 1), ("Birds", 1)]), "a.pdf")

    assert [block.section for block in found.blocks] == [(), ("Cats",), ("Cats",), ("2 Dogs",), ("2 Dogs",)]
    assert "1 Cats\n\nThey purr." in found.text


def test_pdf_outline_entry_without_a_name_is_no_section() -> None:
    found = laid(samples.pdf([["Cats", "They purr."]], outline=[(" ", 0), ("Cats", 0)]), "a.pdf")

    assert (found.text, [block.section for block in found.blocks]) == ("Cats\n\nThey purr.", [("Cats",), ("Cats",)])


def test_encrypted_pdf_says_so() -> None:
    no = refusal(samples.encrypted_pdf(), "a.pdf")

    assert no.code == "invalid_file"
    assert "encrypted" in no.message


@pytest.mark.parametrize("data", [b"%PDF-1.4\nnot one", samples.pdf([["x"]])[:60]])
def test_damaged_pdf_is_invalid(data: bytes) -> None:
    no = refusal(data, "a.pdf")

    assert no.code == "invalid_file"
    assert "damaged" in no.message


@pytest.mark.parametrize(
    "before", [b"\xef\xbb\xbf", b"\r\n \t", b"Content-Type: application/pdf\r\n\r\n", b"\x00\xff" * 300]
)
def test_pdf_behind_something_else_is_read(before: bytes) -> None:
    assert laid(before + samples.pdf([["First page."]]), "a.pdf").text == "First page."


@pytest.mark.parametrize(
    ("filename", "text", "kind"),
    [
        ("notes.md", "# PDF\n\nA PDF starts with the bytes `%PDF-1.7`. Grüße.", "heading"),
        ("sniff.py", 'if b"%PDF-" in data[:1024]:\n    return "pdf"', "code"),
        ("notes.txt", "They begin with %PDF-1.4 and end with %%EOF.", "paragraph"),
    ],
)
def test_text_that_mentions_the_mark_of_pdf_is_text(filename: str, text: str, kind: str) -> None:
    found = laid(text.encode(), filename)

    assert "%PDF-" in found.text
    assert kinds(found)[0] == kind


@pytest.mark.parametrize("word", [b"caf\xe9", b"\xdd\xf2\xee", b"\x94L\x82\xcd"])
def test_text_in_an_old_encoding_may_mention_the_mark_too(word: bytes) -> None:
    found = laid(b"The mark %PDF-1.4 begins a PDF, " + word, "notes.txt")

    assert found.text.startswith("The mark %PDF-1.4 begins a PDF, ")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf\n%PDF-1.4\nnot one",
        b"%%PDF-1.4\n\x00\x01",
        b"\xff\xfe\xfd%PDF-1.4",
        b"\xff\x01\x02%PDF-1.4",
        b" \n%PDF-1.4\xe9",
    ],
)
def test_damaged_pdf_behind_a_mark_or_no_text_is_invalid(data: bytes) -> None:
    assert "damaged" in refusal(data, "a.pdf").message


def test_pdf_with_too_many_pages_is_invalid() -> None:
    no = refusal(samples.pdf([["x"]] * 4), "a.pdf", ParserLimits(pages=3))

    assert no.code == "invalid_file"
    assert "4 pages" in no.message


def test_pdf_without_text_says_so() -> None:
    assert refusal(samples.pdf([[]]), "a.pdf").message == "The file contains no text."


# HTML


PAGE = """<!DOCTYPE html><html lang="de-AT"><head><title>The  title</title><style>p{}</style></head><body>
<nav><a href=x>Menu</a></nav><script>var noise = 1;</script>
<h1>Install &amp; run</h1><p>Some <b>bold</b> text,<br>and   a line. <!-- hidden --></p>
<h2>Steps</h2><ul><li>One<ul><li>Deeper</li></ul></li><li>Two</li></ul>
<pre><code>if x:
    y &lt; 1

    z</code></pre>
<table><tr><th>Name</th><th>Age</th></tr><tr><td>Ada</td><td>36</td></tr></table>
<div role="navigation">More menu</div><p hidden>Unseen</p>
</body></html>"""


def test_html_retains_visible_content_and_drops_invisible_content() -> None:
    found = laid(PAGE.encode(), "page.html")

    assert found.text == (
        "Install & run\n\nSome bold text,\nand a line.\n\nSteps\n\n- One\n  - Deeper\n- Two\n\n"
        "if x:\n    y < 1\n\n    z\n\nName | Age\nAda | 36"
    )
    assert kinds(found) == ["heading", "paragraph", "heading", "list", "code", "table"]
    assert found.blocks[-1].section == ("Install & run", "Steps")
    assert found.title == "The title"
    assert parser_child.read_format(PAGE.encode(), "page.html", ParserLimits()).language == "de"


def test_html_code_with_line_break_tags_retains_its_lines() -> None:
    page = "<html><body><pre>x = 1<br>  y = <b>2<br/></b>z = 3<!-- no -->\n\nend</pre><p>after<br>it</p>"

    found = laid(page.encode(), "page.html")

    assert found.text == "x = 1\n  y = 2\nz = 3\n\nend\n\nafter\nit"
    assert kinds(found) == ["code", "paragraph"]


def test_html_table_that_lays_out_the_page_is_no_table() -> None:
    page = "<html><body><table><tr><td><h1>Head</h1><p>Text</p><table><tr><td>a<td>b</table></td></tr></table>"

    assert kinds(laid(page.encode(), "page.html")) == ["heading", "paragraph", "table"]


@pytest.mark.parametrize(
    "head", ['<meta charset="iso-8859-1">', '<meta http-equiv="Content-Type" content="text/html; charset=latin1">']
)
def test_html_says_its_own_charset(head: str) -> None:
    page = f"<html><head>{head}</head><body><p>Über Größe</p></body></html>".encode("latin-1")

    assert laid(page, "page.html").text == "Über Größe"


def test_html_that_says_latin_1_keeps_its_quotes_dashes_and_euro_signs() -> None:
    said = "\u201cIt\u2019s done\u201d \u2014 he doesn\u2019t pay 5 \u20ac."

    assert laid(f'<html><head><meta charset="iso-8859-1"></head><p>{said}'.encode("cp1252"), "page.html").text == said


def test_html_that_nests_very_deep_is_read() -> None:
    page = f"<html><body>{'<div>' * 20_000}deep{'</div>' * 20_000}</body></html>"

    assert laid(page.encode(), "page.html").text == "deep"


# Markdown


MARKDOWN = """---
title: "From the front"
---
# One #

Text with *marks*.
- item
  more of it

Two
---

| a | b |
|---|---|
| 1 | 2 |

~~~python
# no heading

code
~~~
### Three
"""


def test_markdown_text_is_unchanged_and_its_blocks_are_recognised() -> None:
    found = laid(MARKDOWN.encode(), "a.md")

    assert kinds(found) == ["heading", "paragraph", "list", "heading", "table", "code", "heading"]
    assert "~~~python\n# no heading\n\ncode\n~~~" in found.text
    assert found.blocks[4].section == ("One", "Two")
    assert found.blocks[6].section == ("One", "Two", "Three")
    assert found.title == "From the front"


@pytest.mark.parametrize(
    ("line", "name"), [("## A b ##", "A b"), ("# C#", "C#"), ("# [a](b) `c` **d**", "a c d"), ("#", "#")]
)
def test_markdown_heading_has_a_name(line: str, name: str) -> None:
    assert laid(f"{line}\n\ntext".encode(), "a.md").blocks[1].section == (name,)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "<!---->" * 500 + "x"),
        ("a.md", "# " + " " * 500_000 + "x\n"),
        ("a.md", "a|b\n" + " " * 500_000 + "x|\n"),
        ("a.md", "# " + "[" * 500_000),
        ("a.csv", '"' * 500_001),
        ("a.txt", "x. " + " " * 500_000 + ".)))" * 100_000),
    ],
)
def test_text_that_is_made_to_take_for_ever_does_not(name: str, text: str) -> None:
    assert laid(text.encode(), name).blocks


def test_markdown_that_begins_with_a_rule_has_no_metadata() -> None:
    found = laid(b"---\nA rule, and no end of it.\n\n# Head\n", "a.md")

    assert found.text == "---\nA rule, and no end of it.\n\n# Head"


def test_markdown_fence_that_never_ends_is_code_to_the_end() -> None:
    assert kinds(laid(b"text\n```\n# a\n\n# b", "a.md")) == ["paragraph", "code"]


# CSV, JSON, code


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'name,note\nAda,"likes, commas"\n'),
        ("a.csv", "name;note\nAda;likes, commas\n"),
        ("a.tsv", "name\tnote\nAda\tlikes, commas\n"),
    ],
)
def test_table_of_text_is_a_row_a_line(name: str, text: str) -> None:
    found = laid(text.encode(), name)

    assert found.text == "name | note\nAda | likes, commas"
    assert kinds(found) == ["table"]


def test_single_line_json_is_indented_and_its_character_escapes_decoded() -> None:
    one_line = r'{"word":"caf\u00e9 \ud83d\ude00","keep":"\\u00e9 \u0022","big":12345678901234567890123.10}'

    found = laid(one_line.encode(), "a.json")

    assert found.text == (
        '{\n  "word": "café 😀",\n  "keep": "\\\\u00e9 \\u0022",\n  "big": 12345678901234567890123.10\n}'
    )


def test_json_with_short_lines_is_unchanged() -> None:
    written = '{"a":\n    [1,2,\n     3]}'

    assert laid(written.encode(), "a.json").text == written


def test_large_table_is_split_into_blocks_without_empty_rows() -> None:
    rows = range(plain._ROWS + 1)

    found = laid("\n,\n".join(f"{n},x" for n in rows).encode(), "a.csv")

    assert found.text == "\n".join(f"{n} | x" for n in rows[:-1]) + f"\n\n{rows[-1]} | x"
    assert kinds(found) == ["table", "table"]


def test_json_lines_are_a_record_a_paragraph() -> None:
    assert laid(b'{"a":1}\n{"a":2}\n', "a.jsonl").text == '{"a":1}\n\n{"a":2}'


def test_json_that_nests_without_end_is_only_text() -> None:
    assert kinds(laid(b"[" * 100_000 + b"]" * 99_999, "a.json")) == ["paragraph"]


def test_source_code_is_single_block_with_its_blank_lines() -> None:
    found = laid(b"def a():\n    pass\n\n\n\ndef b():\n    pass\n", "a.py")

    assert kinds(found) == ["code"]
    assert found.text == "def a():\n    pass\n\n\n\ndef b():\n    pass"


# Names that lie, and what can't be read


def test_content_goes_before_the_name() -> None:
    assert laid(samples.pdf([["Page."]]), "a.txt").blocks[0].page == 1
    assert laid(PAGE.encode(), "a.txt").title == "The title"
    assert laid(b"just text", "a.pdf").text == "just text"
    assert laid(b'{"a": [1, 2]}', "a.md").blocks[0].kind == "code"


@pytest.mark.parametrize("data", [bytes(range(256)) * 20, b"\x7fELF\x02\x01" + bytes(500), b"\x1f\x8b\x08\x00abc\x00"])
def test_junk_with_the_name_of_text_is_unsupported(data: bytes) -> None:
    assert refusal(data, "a.txt").code == "unsupported_file"


@pytest.mark.parametrize(
    "data", [b"", b" \n\t ", b"\xef\xbb\xbf", "\u200b".encode("utf-16")[:2], b"<html><body></html>"]
)
def test_nothing_to_read_is_invalid(data: bytes) -> None:
    no = refusal(data, "a.txt")

    assert (no.code, no.message) == ("invalid_file", "The file contains no text.")


def test_archive_is_unsupported() -> None:
    assert refusal(samples.packed({"a.txt": "x"}), "a.zip").code == "unsupported_file"


def test_more_text_than_allowed_is_invalid() -> None:
    no = refusal(b"word " * 300_000, "a.txt", ParserLimits(text_bytes=1 << 20))

    assert no.code == "invalid_file"
    assert "1 MiB" in no.message


def test_xml_with_entities_is_text_and_expands_to_nothing() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;">]><x>&b;</x>'

    assert laid(bomb, "a.xml").text == bomb.decode()


# The extra


@needs_kreuzberg
def test_word_keeps_its_headings_tables_and_special_characters() -> None:
    body = samples.paragraph("Plans", "Heading1") + samples.paragraph("R&amp;D &lt;now&gt; &#233; * _x_ שלום 😀")

    found = laid(samples.docx(body + samples.table([["a", "b"], ["1", "2"]])), "a.docx")

    assert "R&D <now> é * _x_ שלום 😀" in found.text
    assert found.blocks[0].section == ("Plans",)
    assert kinds(found) == ["heading", "paragraph", "table"]


@needs_kreuzberg
def test_slides_sheets_and_open_documents() -> None:
    assert "Second R&D" in laid(samples.pptx(["First", "Second R&amp;D"]), "a.pptx").text
    assert "pear" in laid(samples.xlsx([["fruit", "n"], ["pear", "3"]]), "a.xlsx").text
    assert "Body R&D" in laid(samples.odt("<text:p>Body R&amp;D</text:p>"), "a.odt").text


@needs_kreuzberg
def test_books_mail_and_rich_text() -> None:
    book = laid(samples.epub("The book", "<h1>One</h1><p>It was.</p>"), "a.epub")
    mail = b"From: a@b.example\r\nTo: c@d.example\r\nSubject: Hello\r\nDate: x\r\n\r\nThe body.\r\n"

    assert (book.title, book.blocks[-1].section) == ("The book", ("One",))
    assert "The body." in laid(mail, "a.eml").text
    assert "The body." in laid(mail, "a.txt").text
    assert laid(rb"{\rtf1\ansi Hello {\b bold} world.}", "a.rtf").text == "Hello **bold** world."


@needs_kreuzberg
def test_epub_code_retains_backslashes() -> None:
    found = laid(samples.epub("T", "<p>one_two</p><pre><code>print(r'\\_')</code></pre>"), "a.epub")

    assert kinds(found) == ["paragraph", "code"]
    assert found.text.startswith("one_two\n\n")
    assert r"print(r'\_')" in found.text


@needs_kreuzberg
def test_word_with_a_picture_loses_none_of_its_text() -> None:
    data = samples.docx(samples.paragraph("Word &amp; more."), {"word/media/a.png": b"\x89PNG&amp;"})

    assert laid(data, "a.docx").text == "Word & more."


@needs_kreuzberg
def test_office_file_that_is_damaged_is_invalid() -> None:
    assert refusal(samples.docx("<w:p><w:r>"), "a.docx").code == "invalid_file"
    assert refusal(samples.docx(samples.paragraph("x"))[:200], "a.docx").code == "invalid_file"


def test_picture_that_is_none_is_refused() -> None:
    assert refusal(b"\x89PNG\r\n\x1a\n" + bytes(100), "a.png").code in ("invalid_file", "unsupported_file")


def test_office_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office, "is_installed", lambda: False)

    no = refusal(samples.docx(samples.paragraph("x")), "a.docx")

    assert no.code == "unsupported_file"
    assert "extra 'parse'" in no.message


def test_old_office_is_unsupported_and_encrypted_office_says_so() -> None:
    old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)

    assert refusal(old, "a.doc").code == "unsupported_file"
    assert "encrypted" in refusal(old + "EncryptedPackage".encode("utf-16-le"), "a.docx").message


def test_picture_is_known_by_its_first_bytes() -> None:
    assert office.kind(b"RIFF\x24\x00\x00\x00WEBPVP8 ", "a.txt") == "image/webp"
    assert office.kind(b"RIFF\x24\x00\x00\x00WAVEfmt ", "a.webp") is None

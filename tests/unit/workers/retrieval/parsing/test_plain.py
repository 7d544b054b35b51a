# ruff: noqa: RUF001 (letters of other scripts are what this is about)
"""Test decoding text in all the encodings there are, and tables whose quotes are none."""

import pytest

from workers.retrieval.parsing import blocks, plain
from workers.retrieval.parsing.contract import FileRefused, ParserLimits

RUSSIAN = "Это русский текст для проверки кодировки. Он достаточно длинный, чтобы его узнать."
JAPANESE = "これは日本語の文章です。検索のための文書を分割します。"
CHINESE = "这是一个中文文档，用于测试编码检测。我们希望它能被正确识别。"
FRENCH = "Le café était très agréable, où nous avons dîné près de l'hôtel. Ça coûte cinq francs."
POLISH = "Zażółć gęślą jaźń. W Szczebrzeszynie chrząszcz brzmi w trzcinie i Szczebrzeszyn z tego słynie."


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_decides(mark: str) -> None:
    assert plain.decode(JAPANESE.encode(mark)) == JAPANESE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["plain English text\n", RUSSIAN, FRENCH, "עברית עם רווחים 😀 and more"])
def test_unicode_needs_no_mark(encoding: str, text: str) -> None:
    assert plain.decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", FRENCH),
        ("cp1252", "“Quotes” cost €5 – a naïve façade, Müller und Söhne."),
        ("koi8-r", RUSSIAN),
        ("cp1251", RUSSIAN),
        ("iso8859-2", POLISH),
        ("shift-jis", JAPANESE),
        ("euc-jp", JAPANESE),
        ("gb18030", CHINESE),
        ("euc-kr", "이것은 한국어 문서입니다. 인코딩을 확인합니다."),
        ("cp1253", "Αυτό είναι ένα ελληνικό κείμενο για δοκιμή."),
        ("iso2022-jp", JAPANESE),
    ],
)
def test_old_encodings_are_recognised(encoding: str, text: str) -> None:
    assert plain.decode(text.encode(encoding)) == text


def test_declared_encoding_goes_before_the_guess() -> None:
    assert plain.decode("Привет".encode("koi8-r"), "koi8-r") == "Привет"
    assert plain.decode(FRENCH.encode("latin-1"), "no-such-charset") == FRENCH


@pytest.mark.parametrize(
    ("label", "written", "text"),
    [
        ("iso-8859-1", "cp1252", "“It’s done” — he doesn’t pay 5 €."),
        ("Latin1", "cp1252", "“It’s done” — he doesn’t pay 5 €."),
        ("us-ascii", "cp1252", "It’s a naïve façade…"),
        ("iso-8859-9", "cp1254", "“Işık” — 5 €"),
        ("tis-620", "cp874", "“สวัสดี” 5 €"),
        ("Shift_JIS", "cp932", "①髙﨑㈱"),
        ("x-sjis", "cp932", "①髙﨑㈱"),
        ("gb2312", "gb18030", "朱镕基和陶喆"),
        ("GBK", "gb18030", "㐀字和𠀀字"),
        ("euc-kr", "cp949", "똠방각하와 펲시콜라"),
    ],
)
def test_declared_encoding_is_decoded_as_its_superset(label: str, written: str, text: str) -> None:
    assert plain.decode(text.encode(written), label) == text


def test_mismatched_declared_encoding_is_ignored_and_stray_byte_replaced() -> None:
    assert plain.decode(JAPANESE.encode("cp932"), "iso-8859-1") == JAPANESE
    assert plain.decode(f"{FRENCH} ".encode("cp1252") + b"\x81", "iso-8859-1") == f"{FRENCH} \ufffd"


@pytest.mark.parametrize("data", [bytes(range(1, 256)) * 9, bytes(range(256)) * 9, b"\x00\xff\x00\xfe\x80\x81" * 99])
def test_bytes_that_are_no_text_are_unsupported(data: bytes) -> None:
    with pytest.raises(FileRefused) as no:
        plain.decode(data)

    assert no.value.code == "unsupported_file"


def test_text_is_cleaned_but_not_changed() -> None:
    raw = "\ufeff\n \nשלום עולם 👩‍👩‍👧\r\ntab\there\x00\x07\rcafe\u0301 \ud800end  \n"

    assert blocks.clean(raw) == "שלום עולם 👩‍👩‍👧\ntab\there\ncafe\u0301 \ufffdend"


def test_paragraphs_keep_their_lines_and_indents() -> None:
    found = blocks.lay(plain.read("one\n  two\r\n\r\n \r\n\r\n    three\n"), ParserLimits())

    assert found.text == "one\n  two\n\n    three"
    assert [(block.start, block.end) for block in found.blocks] == [(0, 9), (11, 20)]


def test_a_stray_zero_makes_no_wide_text_of_utf_8_and_no_text_of_other_bytes() -> None:
    written = f"{FRENCH} " * 20

    assert plain.decode(b"\x00" + written.encode()) == "\x00" + written
    with pytest.raises(FileRefused) as no:
        plain.decode(b"\x00" + written.encode("latin-1"))
    assert no.value.code == "unsupported_file"


def test_bytes_of_which_no_encoding_makes_sense_are_read_all_the_same() -> None:
    every = bytes(range(128, 256))

    assert plain.decode(every) == every.decode("cp1252", errors="replace")


def rows(text: str) -> list[str]:
    return "\n".join(block.text for block in plain.read_table(text).blocks).split("\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('size\tname\n"5 inch\tdisk\n3 inch\tdisk\n', ["size | name", '"5 inch | disk', "3 inch | disk"]),
        ('a\tb\n"5\tx\n3\ty\n"6\tz\n', ["a | b", '"5 | x', "3 | y", '"6 | z']),
        ('a\tb\n"Yes" he said\tx\n', ["a | b", '"Yes" he said | x']),
        ('a,b\n1,"x\n2,y\n3,z', ["a | b", '1 | "x', "2 | y", "3 | z"]),
        ('a,b\n1,"', ["a | b", '1 | "']),
    ],
)
def test_a_quote_that_never_closes_holds_nothing(text: str, found: list[str]) -> None:
    assert rows(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'a\tb\n"two\nlines\tand a tab"\t"said ""yes"""\r\n1\t2\n',
            ["a | b", 'two lines and a tab | said "yes"', "1 | 2"],
        ),
        ('a,b\n1,"x\ny"\n2,""""', ["a | b", "1 | x y", '2 | "']),
        ('a,b\n"x"y,"1,2"\nend', ["a | b", "xy | 1,2", "end"]),
        ('a,"b\nend"', ["a | b end"]),
    ],
)
def test_a_quote_that_closes_holds_a_field(text: str, found: list[str]) -> None:
    assert rows(text) == found

"""Which language a document and each of its chunks is in."""

from pathlib import Path

import pytest

from jobs.retrieval.documents import Document
from tests.unit.workers.retrieval.parsing.test_chunking import LIMITS, TOKENS
from workers.retrieval.parsing import parser_child
from workers.retrieval.parsing.contract import Cutting, Strategy

TEXTS = {
    "en": "The harbour was quiet in the morning, boats lay side by side, and nobody spoke until the market had opened.",
    "de": "Der Hafen war am Morgen still, die Boote lagen nebeneinander, und niemand sprach, bis der Markt begann.",
    "fr": "Le port était calme le matin, les bateaux étaient côte à côte, et personne ne parlait avant le marché.",
    "ru": "Утром в гавани было тихо, лодки стояли рядом, и никто не говорил ни слова, пока не открылся рынок.",
    "he": "בבוקר היה הנמל שקט, הסירות עמדו זו לצד זו, ואיש לא דיבר עד שהשוק נפתח והאופים הביאו את הלחם אל הדוכנים.",
    "ja": "朝の港は静かで、船が並んで泊まっていて、市場が開くまで誰も話さなかった。パン屋は眠らずに働いていた。" * 2,
}


def read(text: str, name: str = "a.md", strategy: Strategy = "static", most: int = 60) -> Document:
    cutting = Cutting(Path(), most, 0, strategy)
    return parser_child.read_document(text.encode(), name, TOKENS["word_piece"], cutting, LIMITS)


@pytest.mark.parametrize("name", TEXTS)
def test_letters_tell(name: str) -> None:
    assert read(TEXTS[name]).language == name


@pytest.mark.parametrize("text", ["12 | 44.5 | 99\n13 | 22 | 1\n" * 20, "xyzzy", "OK", "😀 " * 80, "x" * 500])
def test_what_is_no_text_is_in_no_language(text: str) -> None:
    assert read(text).language is None


def test_letters_go_before_what_is_declared_and_that_before_nothing() -> None:
    page = '<!doctype html><html lang="en-GB"><body><p>{}</p></body></html>'

    assert read(page.format(TEXTS["de"]), "a.html").language == "de"
    assert read(page.format("12 + 13"), "a.html").language == "en"


@pytest.mark.parametrize("strategy", ["structure", "semantic"])
def test_a_chunk_in_another_language_says_so_and_a_short_one_does_not(strategy: Strategy) -> None:
    english = " ".join([TEXTS["en"]] * 6)

    document = read(f"# A\n\n{english}\n\n# B\n\n{TEXTS['de']}\n\n# C\n\nGuten Tag!", strategy=strategy)

    pieces = document.chunks or document.sentences
    german = [piece for piece in pieces if "Hafen" in document.text[piece.start : piece.end]]
    assert document.language == "en"
    assert [piece.language for piece in german] == ["de"]
    assert {piece.language for piece in pieces if piece not in german} == {None}
    assert len(pieces) >= 4

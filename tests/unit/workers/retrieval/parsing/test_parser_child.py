"""Test what the child does with one file, in this process: its limits, and the languages that it names."""

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.retrieval.documents import Document
from tests.unit.workers.retrieval.parsing import samples
from tests.unit.workers.retrieval.parsing.test_chunking import TOKENS
from workers.retrieval.parsing import contract, office, parser_child
from workers.retrieval.parsing.chunking import Tokens
from workers.retrieval.parsing.contract import Cutting, FileRefused, ParserLimits, Strategy
from workers.retrieval.parsing.parser_child import Reader

LIMITS = ParserLimits(memory_bytes=8 << 30)  # this process has threads, and may need stacks for more of them
_BOTH = (resource.RLIMIT_AS, resource.RLIMIT_CPU)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture(autouse=True)
def own_limits() -> Iterator[None]:
    before = [resource.getrlimit(which) for which in _BOTH]
    yield
    for which, limits in zip(_BOTH, before, strict=True):
        resource.setrlimit(which, limits)


def asked(limits: ParserLimits = LIMITS) -> contract.Ask:
    return contract.ask("a.txt", Cutting(samples.word_piece(), 100, 20), limits)


def answered(
    work: parser_child.Work, path: Path, tokenizer: Path | None = None, limits: ParserLimits = LIMITS
) -> contract.Answer:
    with path.open("rb") as file, (tokenizer or samples.word_piece()).open("rb") as described:
        return contract.decode_answer(parser_child.answer(work, asked(limits), file, described))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "stored").write_text("The kiwi is a bird.")
    return tmp_path / "stored"


def test_the_limits_of_a_file_end_with_it(reader: Reader, file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    ends = [answered(reader.read, one) for one in (file, tmp_path / "empty")]

    assert isinstance(ends[0], contract.Parsed)
    assert ends[0].document.text == "The kiwi is a bird."
    assert ends[1] == contract.Refusal("invalid_file", "The file contains no text.")
    assert [soft for soft, hard in map(resource.getrlimit, _BOTH) if soft != hard] == []


def test_a_file_that_is_larger_than_any_with_so_much_text_is_not_read(reader: Reader, file: Path) -> None:
    limits = replace(LIMITS, text_bytes=1 << 20)
    os.truncate(file, office.EXPANSION * limits.text_bytes + 1)

    assert answered(reader.read, file, limits=limits) == contract.Refusal(
        "invalid_file", "The file has more than 8 MiB."
    )


def test_tokenizers_are_cached_until_changed_and_up_to_limit(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, loaded = Reader(), list[str]()
    load = Tokens.read

    def noted(data: bytes) -> Tokens:
        loaded.append(data[-1:].decode())
        return load(data[:-1])

    monkeypatch.setattr(Tokens, "read", noted)
    monkeypatch.setattr(parser_child, "_TOKENIZERS", 2)
    made = samples.byte_level(tmp_path)
    paths = [made.with_name(name) for name in "abc"]
    for path in paths:
        path.write_bytes(made.read_bytes() + path.name.encode())

    for path in (paths[0], paths[1], paths[0]):
        answered(reader.read, file, path)
    assert loaded == ["a", "b"]
    os.utime(paths[0], ns=(0, 0))
    answered(reader.read, file, paths[0])
    assert loaded == ["a", "b", "a"]
    answered(reader.read, file, paths[2])
    answered(reader.read, file, paths[0])
    assert loaded == ["a", "b", "a", "c"]
    assert len(reader._tokens) == 2


def test_an_answer_that_is_larger_than_the_parent_takes_is_a_refusal(file: Path) -> None:
    limits = ParserLimits(text_bytes=10)

    def answer(length: int) -> bytes:
        answer = answered(lambda *_: contract.Parsed(Document("x" * length, ()), 0), file, limits=limits)
        return contract.encode(answer)

    whole = contract.largest_answer(limits)
    assert whole - 200 < len(answer(whole - 200)) <= whole
    assert contract.decode_answer(answer(whole)) == contract.Refusal("invalid_file", "The file has too much text.")


@pytest.mark.parametrize(
    ("raised", "refusal"),
    [
        (FileRefused("unsupported_file", "No."), contract.Refusal("unsupported_file", "No.")),
        (
            MemoryError(),
            contract.Refusal("invalid_file", "The file could not be parsed within its limits of 8192 MiB of memory."),
        ),
        (
            KeyboardInterrupt("secret"),
            contract.Refusal("invalid_file", "The file could not be parsed: it is damaged, or not what it says it is."),
        ),
    ],
)
def test_library_exception_becomes_refusal(raised: BaseException, refusal: contract.Refusal, file: Path) -> None:
    def work(*_: object) -> contract.Parsed:
        raise raised

    assert answered(work, file) == refusal


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
def test_unidentifiable_text_has_no_language(text: str) -> None:
    assert read(text).language is None


def test_detected_language_precedes_declared_language() -> None:
    page = '<!doctype html><html lang="en-GB"><body><p>{}</p></body></html>'

    assert read(page.format(TEXTS["de"]), "a.html").language == "de"
    assert read(page.format("12 + 13"), "a.html").language == "en"


@pytest.mark.parametrize("strategy", ["structure", "semantic"])
def test_only_long_chunk_in_other_language_states_its_language(strategy: Strategy) -> None:
    english = " ".join([TEXTS["en"]] * 6)

    document = read(f"# A\n\n{english}\n\n# B\n\n{TEXTS['de']}\n\n# C\n\nGuten Tag!", strategy=strategy)

    pieces = document.chunks or document.sentences
    german = [piece for piece in pieces if "Hafen" in document.text[piece.start : piece.end]]
    assert document.language == "en"
    assert [piece.language for piece in german] == ["de"]
    assert {piece.language for piece in pieces if piece not in german} == {None}
    assert len(pieces) >= 4

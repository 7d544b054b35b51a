"""What the child does with one file, done in this process: its limits end with the file, whatever comes of it."""

import io
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.documents import Document
from tests.unit.workers.parsing import samples
from workers.parsing import archive, child, reading, wire
from workers.parsing.reading import Reader
from workers.parsing.terms import Cutting, Limits, Refused
from workers.parsing.tokens import Tokens

LIMITS = Limits(memory_bytes=8 << 30)  # this process has threads, and may need stacks for more of them
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


def asked(file: Path, tokenizer: Path | None = None, limits: Limits = LIMITS) -> wire.Ask:
    return wire.ask(str(file), "a.txt", Cutting(tokenizer or samples.word_piece(), 100, 20), limits)


def answered(reader: Reader, ask: wire.Ask) -> wire.Answer:
    return wire.decode_answer(child.answer(reader.read, ask))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "stored").write_text("The kiwi is a bird.")
    return tmp_path / "stored"


def test_the_limits_of_a_file_end_with_it(reader: Reader, file: Path, tmp_path: Path) -> None:
    ends = [answered(reader, asked(one)) for one in (file, tmp_path / "none")]

    assert isinstance(ends[0], wire.Parsed)
    assert ends[0].document.text == "The kiwi is a bird."
    assert ends[1] == wire.Refusal("server_error", "The stored file could not be read.")
    assert [soft for soft, hard in map(resource.getrlimit, _BOTH) if soft != hard] == []


def test_a_file_that_is_larger_than_any_with_so_much_text_is_not_read(reader: Reader, file: Path) -> None:
    limits = replace(LIMITS, text_bytes=1 << 20)
    os.truncate(file, archive.EXPANSION * limits.text_bytes + 1)

    assert answered(reader, asked(file, limits=limits)) == wire.Refusal("invalid_file", "The file has more than 8 MiB.")


def test_a_tokenizer_is_loaded_once_until_it_changes_and_a_few_are_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, loaded = Reader(), list[str]()
    load = Tokens.load

    def noted(path: Path) -> Tokens:
        loaded.append(path.name)
        return load(path)

    monkeypatch.setattr(Tokens, "load", noted)
    monkeypatch.setattr(reading, "_TOKENIZERS", 2)
    made = samples.byte_level(tmp_path)
    paths = [made.with_name(name) for name in "abc"]
    for path in paths:
        path.write_bytes(made.read_bytes())

    for path in (paths[0], paths[1], paths[0]):
        reader.read(asked(file, path))
    assert loaded == ["a", "b"]
    os.utime(paths[0], ns=(0, 0))
    reader.read(asked(file, paths[0]))
    assert loaded == ["a", "b", "a"]
    reader.read(asked(file, paths[2]))
    reader.read(asked(file, paths[0]))
    assert loaded == ["a", "b", "a", "c"]
    assert len(reader._tokens) == 2


def test_an_answer_that_is_larger_than_the_parent_takes_is_a_refusal() -> None:
    limits = Limits(text_bytes=10)
    ask = asked(Path("x"), limits=limits)

    def answer(length: int) -> bytes:
        return child.answer(lambda _: wire.Parsed(Document("x" * length, ()), 0), ask)

    whole = wire.largest_answer(limits)
    assert whole - 200 < len(answer(whole - 200)) <= whole
    assert wire.decode_answer(answer(whole)) == wire.Refusal("invalid_file", "The file has too much text.")


@pytest.mark.parametrize(
    ("raised", "refusal"),
    [
        (Refused("unsupported_file", "No."), wire.Refusal("unsupported_file", "No.")),
        (
            MemoryError(),
            wire.Refusal("invalid_file", "The file could not be parsed within its limits of 8192 MiB of memory."),
        ),
        (
            KeyboardInterrupt("secret"),
            wire.Refusal("invalid_file", "The file could not be parsed: it is damaged, or not what it says it is."),
        ),
    ],
)
def test_whatever_a_library_raises_is_a_refusal(raised: BaseException, refusal: wire.Refusal) -> None:
    def work(_: wire.Ask) -> wire.Parsed:
        raise raised

    assert wire.decode_answer(child.answer(work, asked(Path("x")))) == refusal


def test_what_one_side_says_is_heard_whole_or_not_at_all() -> None:
    pipe = io.BytesIO()
    for message in (b"first", b"", b"last"):
        wire.write(pipe, message)
    said = pipe.getvalue()

    whole = io.BytesIO(said)
    assert [wire.read(whole) for _ in range(4)] == [b"first", b"", b"last", None]
    for cut in (1, wire.HEADER.size + 2):
        assert wire.read(io.BytesIO(said[:cut])) is None
    assert wire.read(io.BytesIO(wire.HEADER.pack(wire.LARGEST_ASK + 1) + bytes(wire.LARGEST_ASK + 1))) is None

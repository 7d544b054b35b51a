"""Files that lie about what they are, or are made to hurt, in one batch: each ends by itself, its neighbours go on."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from jobs.ledger.states import JobState
from jobs.retrieval.documents import Document
from tests.support.ingestion import Works
from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import office

#: By name: content, and a word by which it is found.
GOOD: dict[str, tuple[bytes, str]] = {
    "pdf.txt": (samples.pdf([["A walrus in disguise."]]), "walrus"),
    "text.pdf": (b"Only its name says that this okapi is a PDF.", "okapi"),
    "page.docx": (b"<!doctype html><html><body><p>A page about a narwhal.</body></html>", "narwhal"),
    "hebrew.txt": ("הלוויתן שוחה בים הגדול".encode("utf-16"), "הלוויתן"),
    "russian.txt": (("Морж лежит на льдине и смотрит на холодное море. " * 20).encode("cp1251"), "льдине"),
    "emoji.md": (("👩‍👩‍👧 watch the pangolin 🦔👍🏽 " * 30).encode(), "pangolin"),
    "line.txt": (b"capybara " * 12_000 + b"x" * 900_000, "capybara"),
    "zero.txt": (b"An axolotl with a stray \x00 zero.", "axolotl"),
}
BAD: dict[str, tuple[bytes, str]] = {
    "blank.txt": (b" \n\t\n ", "invalid_file"),
    "locked.pdf": (samples.encrypted_pdf(), "invalid_file"),
    "torn.pdf": (samples.pdf([["x"]])[:80], "invalid_file"),
    "torn.docx": (samples.docx(samples.paragraph("x"))[:200], "invalid_file"),
    "noise.txt": (bytes(range(256)) * 8, "unsupported_file"),
    "parts.zip": (samples.packed({"a.txt": "x"}), "unsupported_file"),
    "bomb.docx": (samples.declared(samples.packed({"word/document.xml": "0"}), 600_000_000, 0), "invalid_file"),
}


@pytest.mark.parametrize(
    "bad", [("blank.txt", "noise.txt", "bomb.docx"), pytest.param(tuple(BAD), marks=pytest.mark.verify)], ids=len
)
def test_each_ends_by_itself_and_its_neighbours_go_on(inline: Works, bad: tuple[str, ...]) -> None:
    """Try some of the files: each file that is refused costs a child of the parser."""
    store = inline.store()
    files = {name: data for name, (data, _) in (GOOD | BAD).items() if name in (*GOOD, *bad)}
    names = {inline.upload(data, name): name for name, data in files.items()}

    batch = inline.batch(store, *names)
    inline.drive()

    ended = {names[file]: status for file, status in inline.statuses(store).items()}
    assert ended == dict.fromkeys(GOOD, ("completed", None)) | {name: ("failed", BAD[name][1]) for name in bad}
    job = inline.job(batch)
    assert (job.state, job.completed, job.failed) == (JobState.SUCCEEDED, len(GOOD), len(bad))
    for name, (_, word) in GOOD.items():
        assert inline.search(store, word)[0].filename == name
    content = {names[file]: inline.get(f"/vector_stores/{store}/files/{file}/content")["data"] for file in names}
    assert content["hebrew.txt"][0]["text"] == "הלוויתן שוחה בים הגדול"
    assert "👩‍👩‍👧 watch the pangolin 🦔👍🏽" in content["emoji.md"][0]["text"]
    inline.purge()
    inline.assert_tidy(store)


def test_partially_read_file_is_reparsed_after_tesseract_becomes_available(
    both: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, parse = tesseract_comes(monkeypatch), both.parser.parse

    def read(source: Path, *rest: Any) -> Document:
        return replace(parse(source, *rest), unread=not seen[0])

    monkeypatch.setattr(both.parser, "parse", read)
    store, file = both.store(), both.upload("A heron beside a picture.")

    def again() -> str:
        both.attach(store, file)
        both.drive()
        return str(both.row(store, file).document)

    first = again()
    assert again() == first  # nothing here reads more of it
    seen[0] = True
    second = again()
    assert second != first
    assert again() == second
    seen[0] = False
    assert again() == second
    both.purge()
    both.assert_tidy(store)


def tesseract_comes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there is a Tesseract."""
    seen = [False]
    monkeypatch.setattr(office, "sees", lambda: seen[0])
    return seen

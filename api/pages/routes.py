"""Pages for a browser: a start page and the API reference, without external resources.

They need no key and show nothing of a project. They ask the user for a key, which the API checks as usual.
"""

from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

import fastapi_swagger
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from api.deps import services_of
from api.pages import console_files
from jobs.settings import Settings

router = APIRouter(include_in_schema=False)

_FILES = Path(__file__).parent
_SWAGGER = Path(fastapi_swagger.__file__).parent / "resources"
_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 (addresses that no browser can open)
_HEADERS = {**console_files.HEADERS, "Cache-Control": "no-cache"}
#: File and media type by path.
_ASSETS = {
    "/pages/index.css": (_FILES / "index.css", "text/css"),
    "/docs": (_FILES / "reference.html", "text/html"),
    "/docs/reference.js": (_FILES / "reference.js", "text/javascript"),
    "/docs/swagger-ui-bundle.js": (_SWAGGER / "swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": (_SWAGGER / "swagger-ui.css", "text/css"),
}
#: The paths of all pages and of their resources.
PATHS = frozenset({"/", "/chat", *_ASSETS})


@router.get("/")
def index(request: Request) -> Response:
    """Lead a browser to the console, or to the start page where that is not built; answer others with links as JSON."""
    config = services_of(request).config
    headers = {**_HEADERS, "Vary": "Accept"}
    if "text/html" not in request.headers.get("accept", ""):
        links = {"api": "/v1", "openapi": "/openapi.json", "docs": "/docs", "chat": "/chat"}
        if console_files.is_built():
            links["console"] = console_files.PATH
        return JSONResponse({"name": "Nightmill", "version": version("nightmill"), **links}, headers=headers)
    if console_files.is_built():
        return RedirectResponse(console_files.PATH, headers=headers)
    values = {
        "url": _base_url(request, config),
        "flower": _flower_url(request, config),
        "version": version("nightmill"),
    }
    page = Template((_FILES / "index.html").read_text())
    return HTMLResponse(page.substitute({name: escape(value) for name, value in values.items()}), headers=headers)


@router.get("/chat")
def chat() -> Response:
    """Lead a browser to the playground of the console, where a model is tried."""
    return RedirectResponse(f"{console_files.PATH}playground", headers=_HEADERS)


def _base_url(request: Request, config: Settings) -> str:
    """Return the URL at which clients reach the API: the configured one, or the one of this request."""
    return config.public_url.rstrip("/") or str(request.base_url).rstrip("/")


def _flower_url(request: Request, config: Settings) -> str:
    host = config.flower_host if config.flower_host not in _ANYWHERE else request.url.hostname
    return f"http://{host}:{config.flower}"


def _serve(path: str, file: Path, kind: str) -> None:
    def asset() -> FileResponse:
        return FileResponse(file, headers=_HEADERS, media_type=kind)

    router.add_api_route(path, asset, methods=["GET"], name=path)


for _path, (_file, _kind) in _ASSETS.items():
    _serve(_path, _file, _kind)

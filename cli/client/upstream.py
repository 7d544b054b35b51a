"""Ask an OpenAI-compatible server whether it is there, and whether it has a model."""

import http.client
import json
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any, Final

from jobs.requests.endpoints import base_of

_PATIENCE: Final = 5.0  # seconds
_MAX_BYTES: Final = 1 << 20
_MAX_NAMES: Final = 5  # models that an error names
_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN})


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect, as workers follow none: the key is meant for one server only."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def fault(url: str, key: str, model: str) -> str:
    """Return, in words, why the server at `url` cannot answer for `model`; empty where no reason is known."""
    if not (key.isascii() and key.isprintable()):  # the library's error would quote the key
        return "is not asked: its key has characters that no header takes"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{base_of(url)}/v1/models", headers=headers)  # noqa: S310 (the file checked it)
    try:
        with _opener.open(request, timeout=_PATIENCE) as answer:
            return _missing(answer.read(_MAX_BYTES), model)
    except urllib.error.HTTPError as error:
        with error:
            return "refuses the key" if error.code in _REFUSED else ""  # a server may have no list of models
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"is unreachable: {getattr(error, 'reason', error)}"


def _missing(body: bytes, model: str) -> str:
    try:
        names = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return "" if model in names else f"does not list {model}; it lists {', '.join(names[:_MAX_NAMES]) or 'nothing'}"

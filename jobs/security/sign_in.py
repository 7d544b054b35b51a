"""Links that sign a browser in to the console of a deployment that `nightmill up` runs, once each.

    console.links/<SHA-256 of the token>     an empty file of the data folder: a link that nobody has used
    operator.key                             the key that the browser gets for the token

The file's modification time is when the link was made. Using a link removes its file, so that one of two requests at
once wins, and no restart or kill gives a token a second use. The token itself is stored nowhere, but in the page that
`nightmill console --open` leaves for the browser; it is removed with the links.
"""

import hashlib
import secrets
from pathlib import Path
from typing import Final

from jobs.clock import now
from jobs.errors import Unauthenticated

OPERATOR_KEY: Final = "operator.key"
_LINKS: Final = "console.links"


def links_folder(data_dir: Path) -> Path:
    """Return the folder of the links, readable by its owner alone. The first call creates it."""
    folder = data_dir / _LINKS
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def create_token(data_dir: Path, lifetime: float) -> str:
    """Return a new token for a link. Remove what is in the folder of links for longer than `lifetime` seconds."""
    folder = links_folder(data_dir)
    for path in folder.iterdir():
        if _age(path) > lifetime:
            path.unlink(missing_ok=True)
    token = secrets.token_urlsafe(32)
    (folder / _digest(token)).touch(mode=0o600, exist_ok=False)
    return token


def exchange(data_dir: Path, token: str, lifetime: float) -> str:
    """Use up a token, and return the operator's key for it.

    Raises: Unauthenticated, for a token that is unknown, used up or older than `lifetime` seconds.
    """
    link = data_dir / _LINKS / _digest(token)
    age = _age(link)
    try:
        link.unlink()
    except FileNotFoundError:
        age = lifetime + 1
    if age > lifetime:
        message = "This sign-in link was used before, has expired, or is of another server."
        raise Unauthenticated(f"{message} `nightmill console` prints a new one.", code="invalid_sign_in_token")
    return (data_dir / OPERATOR_KEY).read_text().strip()


def _age(path: Path) -> float:
    """Return the seconds since the file was made; those since 1970 for a file that is gone."""
    try:
        return now() - path.stat().st_mtime
    except FileNotFoundError:
        return now()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()

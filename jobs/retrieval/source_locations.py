"""The allowed locations of sources: folders and S3 prefixes that the operator names."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import InvalidRequest

_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?", re.DOTALL)


def folder(roots: Sequence[str], path: str, own: Sequence[Path]) -> Path:
    """Return the real path of a folder below one of `roots` and outside of `own`.

    Raises: InvalidRequest.
    """
    real = _real(path) if Path(path).is_absolute() and "\0" not in path else None
    if real is None or allowed_root(roots, real, own) is None:
        message = (
            "The path must be that of a folder which the operator allows (NIGHTMILL_SOURCE_FOLDERS). It must neither "
            "contain nor lie in a folder of the server's own."
        )
        raise InvalidRequest(message, param="path", code="folder_not_allowed")
    return real


def meets(real: Path, own: Sequence[Path]) -> bool:
    """Return whether a real path contains one of the folders `own`, or lies in one."""
    return any(real.is_relative_to(own_folder) or own_folder.is_relative_to(real) for own_folder in map(_real, own))


def allowed_root(roots: Sequence[str], real: Path, own: Sequence[Path]) -> tuple[Path, tuple[str, ...]] | None:
    """Return the allowed folder of a real path, and the rest of the path; None outside of all, or at `own`."""
    if meets(real, own):
        return None
    for root in roots:
        top = _real(root)
        if real.is_relative_to(top):
            return top, real.relative_to(top).parts
    return None


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def prefix(allowed: Sequence[str], url: str) -> tuple[str, str]:
    """Return bucket and prefix (empty or with a final `/`) below one of `allowed`.

    Raises: InvalidRequest.
    """
    location = _parts(url)
    if location is None or not any(_covers(_parts(allowed_url), location) for allowed_url in allowed):
        message = "The prefix must be one which the operator allows (NIGHTMILL_SOURCE_S3), or lie below one."
        raise InvalidRequest(message, param="prefix", code="prefix_not_allowed")
    return location


def _parts(url: str) -> tuple[str, str] | None:
    match = _S3.fullmatch(url)
    if match is None:
        return None
    parts = (match["prefix"] or "").rstrip("/").split("/")
    if parts != [""] and any(part in ("", ".", "..") for part in parts):
        return None
    return match["bucket"], "/".join([*parts, ""]) if parts != [""] else ""


def _covers(allowed: tuple[str, str] | None, location: tuple[str, str]) -> bool:
    return allowed is not None and allowed[0] == location[0] and location[1].startswith(allowed[1])

"""When a document says that it was written, or changed last: in UTC, by the second or by the day.

What names no zone has no moment in UTC, so its time of day is left out: 2024-01-31T10:00 is 2024-01-31.
"""

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_LONGEST: Final = 64  # characters
#: `D:20240131120000+01'00'`: everything behind the year may be missing.
_PDF: Final = re.compile(
    r"(?:D:)?(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(\d\d)(\d\d)?(?:(Z)(?:00'?00'?)?|([+-]\d\d)'?(\d\d)?'?)?)?)?)?", re.ASCII
)
_SHORT: Final = re.compile(r"\d{4}(?:-(?:0[1-9]|1[0-2]))?", re.ASCII)  # EPUB: a year, or a month


def first(*said: str | None) -> str | None:
    """The first of them that is a date: ISO 8601, as mail writes it, or as PDF does."""
    found = (_found(text.strip()) for text in said if text and len(text.strip()) <= _LONGEST)
    return next((one for one in found if one), None)


def _found(text: str) -> str | None:
    for read in (_iso, _mail, _pdf):
        try:
            found = read(text)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
        if found:
            return found
    return None


def _iso(text: str) -> str | None:
    if _SHORT.fullmatch(text):
        return text if int(text[:4]) else None
    if not text[:4].isdigit() or "-" not in text[:8]:
        return None
    if len(text) <= len("2024-01-31"):
        return date.fromisoformat(text).isoformat()
    return _shown(datetime.fromisoformat(text))


def _mail(text: str) -> str | None:
    return _shown(parsedate_to_datetime(text)) if not text[:4].isdigit() and not text.startswith("D:") else None


def _pdf(text: str) -> str | None:
    match = _PDF.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, zulu, hours, minutes = match.groups()
    if day is None:
        return _iso("-".join(filter(None, (year, month))))
    if hour is None:
        return date(int(year), int(month), int(day)).isoformat()
    zone = "+00:00" if zulu else f"{hours}:{minutes or '00'}" if hours else ""
    return _shown(datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}{zone}"))


def _shown(at: datetime) -> str:
    if at.tzinfo is None:
        return at.date().isoformat()
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").zfill(len("2024-01-31T10:00:00Z"))

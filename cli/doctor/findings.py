"""What a check of the doctor is given, and what it says about one thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.up.folder import DataFolder
    from jobs.settings import Settings


class Health(StrEnum):
    """`WARNING`: it runs, but something is absent that somebody may expect."""

    FINE = "fine"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `mend` says what to do about it."""

    what: str
    health: Health
    told: str
    mend: str = ""

    def described(self) -> dict[str, str]:
        return {"what": self.what, "health": str(self.health), "told": self.told, "mend": self.mend}


def fine(what: str, told: str) -> Finding:
    return Finding(what, Health.FINE, told)


def warning(what: str, told: str, mend: str) -> Finding:
    return Finding(what, Health.WARNING, told, mend)


def broken(what: str, told: str, mend: str) -> Finding:
    return Finding(what, Health.BROKEN, told, mend)


@dataclass(frozen=True, slots=True)
class Patient:
    """The installation that is looked at. `run` is `run.json`, empty when nothing runs."""

    config: "Settings"
    folder: "DataFolder"
    run: Mapping[str, Any]

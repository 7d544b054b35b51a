"""The input of the doctor's checks (`Patient`) and their results (`Finding`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.up.folder import DataFolder
    from jobs.settings import Settings


class Health(StrEnum):
    """The state of one thing. `WARNING`: it works, but something that users may expect is absent."""

    FINE = "fine"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `mend` says how to repair it."""

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
    """The installation to examine. `run` is the content of `run.json`, empty when nothing runs."""

    config: "Settings"
    folder: "DataFolder"
    run: Mapping[str, Any]

"""The input of the doctor's checks (`Patient`) and their results (`Finding`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.up.folder import DataFolder
    from jobs.settings import Settings


class Severity(StrEnum):
    """The state of one thing. `WARNING`: it works, but something that users may expect is absent."""

    FINE = "fine"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix` says how to repair what it found."""

    check: str
    health: Severity
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        return {"check": self.check, "health": str(self.health), "message": self.message, "fix": self.fix}


def fine(check: str, message: str) -> Finding:
    return Finding(check, Severity.FINE, message)


def warning(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Severity.WARNING, message, fix)


def broken(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Severity.BROKEN, message, fix)


@dataclass(frozen=True, slots=True)
class Patient:
    """The installation to examine. `run` is the content of `run.json`, empty when nothing runs."""

    config: "Settings"
    folder: "DataFolder"
    run: Mapping[str, Any]

"""What a check says about one thing."""

from dataclasses import dataclass
from enum import StrEnum


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

"""How a line's request has broken so far, and with how many others it is tried next.

    own     it broke and its server lived: refused, reset, timed out, 5xx. Its own fault
    deaths  the engine died with it in flight. Most of those that were there are innocent
    alone   of these deaths, the ones that met it with nothing else in flight. Hardly innocent

    nothing broke ─▶ with all ──▶ once ─▶ 16 at a time ──▶ two deaths, or one own try left ─▶ alone ──▶ spent

A poison thus kills its engine four times at most, and a line that is refused twice and then answered succeeds,
however often its neighbours' poison takes the engine down. Kept with the shard when a claim is given back.
"""

from dataclasses import astuple, dataclass

#: Requests in flight in a round of suspects.
COMPANY = 16
_DEATHS_IN_COMPANY = 2
_DEATHS_ALONE = 2


@dataclass(slots=True)
class Trials:
    """The record of one line, over all attempts."""

    own: int = 0
    deaths: int = 0
    alone: int = 0

    def spent(self, tries: int) -> bool:
        """Whether the line becomes an error line."""
        return self.own >= tries or self.alone >= _DEATHS_ALONE

    def lonely(self, tries: int) -> bool:
        """Whether it is tried with nothing else in flight."""
        return self.deaths >= _DEATHS_IN_COMPANY or self.own >= tries - 1

    def width(self, tries: int) -> int | None:
        """How many lines of its kind are in flight at once; None: all."""
        if self.lonely(tries):
            return 1
        return COMPANY if self.own or self.deaths else None

    def broke(self, *, died: bool, alone: bool) -> None:
        if not died:
            self.own += 1
        else:
            self.deaths += 1
            self.alone += alone

    def kept(self) -> list[int]:
        """As the shard keeps it; `Trials(*kept)` is its inverse."""
        return list(astuple(self))

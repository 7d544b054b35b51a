"""Clients of the alias `helpline`, beside the batches of a run, and of a mover that changes what it stands for.

    asker   chats and streams to the alias
    mover   other weights, another shadow, back again; and now and then a target that fails at every request, which
            stays until the dispatcher has rolled it back and the restored model has answered

All targets are models of the models file: others are not compared.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx2
import openai

from jobs.registry.aliases import ROLLED_BACK
from tests.chaos.journal import Journal
from tests.support.alias_oracle import RoutedAnswer, SeenMove
from tests.support.oracle import Told
from tests.support.system import BROKEN_MODEL, CACHED_MODEL, CANARY_MODEL, MODEL, pause

if TYPE_CHECKING:
    from tests.chaos.load import Client

ALIAS: Final = "helpline"
HEADER: Final = "X-Nightmill-Model"
_USERS: Final = 20
_STREAMED: Final = 0.3
_SHADOWS: Final = (MODEL, None)
_MOVE_SECONDS: Final = (1.0, 4.0)
_MOVES: Final = 4  # at least, before the target that fails
_PLANTED: Final = 0.4  # the share of it after those
_REVERTED: Final = 0.3
_MIN_REVERTED: Final = 2  # moves since the target that fails, it included: one goes back to a routing without it


@dataclass
class AliasClients:
    """The requests for one alias, and its moves."""

    client: "Client"
    journal: Journal
    rng: random.Random
    told: list[Told]
    moved: Callable[[], None]
    answers: list[RoutedAnswer] = field(default_factory=list)
    moves: list[SeenMove] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)  # roll-backs after which nothing moved before they were complete
    failures: list[tuple[float, str]] = field(default_factory=list)  # of models that fail only with their engine
    is_planted: bool = False
    _asked: int = 0
    _since_plant: int = 0
    _next: float = 0.0
    _looked: float = 0.0
    _busy: bool = False

    # -- the asker

    def ask(self, *, feeding: bool) -> None:
        """Ask the alias once it is there. Raises OpenAIError."""
        if not feeding or not self.acknowledged:
            return
        self._asked += 1
        prompt = f"Route case {self._asked} of {self.rng.getrandbits(48):012x} to its helpline!"
        began = time.monotonic()
        try:
            user, is_stream = f"user-{self.rng.randrange(_USERS)}", self.rng.random() < _STREAMED
            answer = self.client.look(lambda sdk: _ask(sdk, prompt, user, began, is_stream=is_stream))
        except openai.InternalServerError as error:
            self._hear_failure(error, prompt, began)
            return
        if answer is not None:
            self.answers.append(answer)
            self.moved()

    def _hear_failure(self, error: openai.InternalServerError, prompt: str, began: float) -> None:
        """Note a failure: that of the model which always fails is its answer."""
        header, ended = error.response.headers.get(HEADER), time.monotonic()
        if header == BROKEN_MODEL:
            self.answers.append(RoutedAnswer(prompt, began, ended, header, frozenset(), None))
        else:
            self.failures.append((ended, f"{prompt}: {error}"))

    # -- the mover

    def step(self, *, feeding: bool) -> None:
        """Look at the moves, and make one if it is time. Raises OpenAIError."""
        self._busy = True
        try:
            if self.acknowledged:
                self._look()
            if feeding and time.monotonic() >= self._next and self._may_move():
                self._move()
        finally:
            self._busy = False

    @property
    def is_complete(self) -> bool:
        """Return whether the last move is no roll-back that is not complete yet."""
        return not self.moves or self.moves[-1].action != "rollback" or self.moves[-1].id in self._confirmed()

    def await_complete(self, seconds: float) -> bool:
        """Return whether the mover is idle in time, and the last roll-back complete."""
        deadline = time.monotonic() + seconds
        while self._busy or not self.is_complete:
            if time.monotonic() > deadline:
                return False
            pause(0.05)
        return True

    @property
    def rollbacks(self) -> int:
        """Count the roll-backs that are complete."""
        return len(self._confirmed())

    def _confirmed(self) -> set[str]:
        return {told.subject for told in self.told if told.type == ROLLED_BACK}

    def _may_move(self) -> bool:
        return self.is_complete and not self.is_planted

    def _look(self) -> None:
        began = time.monotonic()
        after = f"&after={self.moves[-1].id}" if self.moves else ""
        path = f"/alias_moves?alias={ALIAS}&order=asc&limit=100{after}"
        page: Any = self.client.look(lambda sdk: sdk.get(path, cast_to=object))
        if page is None:
            return
        for move in page["data"]:
            models = frozenset(target["model"] for target in move["routing"]["targets"])
            self.moves.append(SeenMove(move["id"], move["action"], models, self._looked, time.monotonic()))
            self.journal.note(f"{ALIAS} stands for {sorted(models)}: {move['action']} by {move['actor']}")
            self.moved()
        if page["data"] and self.moves[-1].action == "rollback":
            self.awaited.append(self.moves[-1].id)
            self.is_planted = False
        self._looked = began

    def _move(self) -> None:
        reason = f"move-{len(self.acknowledged):03d}"
        body: dict[str, Any] = {"reason": reason}
        if not self.acknowledged:
            self._post("/aliases", reason, id=ALIAS, **body, **self._routing())
        elif self._since_plant >= _MOVES and self.rng.random() < _PLANTED:
            self.is_planted, self._since_plant = True, 0
            good = self.rng.choice((CACHED_MODEL, CANARY_MODEL))
            targets = [{"model": good, "weight": 50}, {"model": BROKEN_MODEL, "weight": 50}]
            self._post(f"/aliases/{ALIAS}", reason, **body, targets=targets, sticky=False, shadow=None)
        elif self._since_plant >= _MIN_REVERTED and self.rng.random() < _REVERTED:
            self._post(f"/aliases/{ALIAS}", reason, **body, revert=True)
        else:
            self._post(f"/aliases/{ALIAS}", reason, **body, **self._routing())
        self._next = time.monotonic() + self.rng.uniform(*_MOVE_SECONDS)

    def _routing(self) -> dict[str, Any]:
        """Return a routing of two targets, by which no roll-back leaves the alias as it is."""
        first, second = self.rng.sample((CACHED_MODEL, CANARY_MODEL), 2)
        share = self.rng.randint(5, 95)
        targets = [{"model": first, "weight": 100 - share}, {"model": second, "weight": share}]
        shadow = self.rng.choice(_SHADOWS)
        sticky = self.rng.random() < 0.3
        return {"targets": targets, "sticky": sticky, "shadow": {"model": shadow} if shadow else None}

    def _post(self, path: str, key: str, **body: Any) -> None:
        self.client.sdk.post(path, cast_to=object, body=body, options={"headers": {"Idempotency-Key": key}})
        self.acknowledged.append(key)
        self._since_plant += 1
        self.journal.note(f"{key} of {ALIAS} is acknowledged")


def _ask(sdk: openai.OpenAI, prompt: str, user: str, began: float, *, is_stream: bool) -> RoutedAnswer:
    """Return the answer to a prompt, or the part of its stream that came. Raises OpenAIError."""
    asked: Any = {"model": ALIAS, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16}
    asked["safety_identifier"] = user
    raw: Any = sdk.chat.completions.with_raw_response.create(**asked, stream=is_stream)
    header, made = raw.headers.get(HEADER), raw.parse()
    if not is_stream:
        text = made.choices[0].message.content
        return RoutedAnswer(prompt, began, time.monotonic(), header, frozenset((made.model,)), text)
    models: set[str] = set()
    text, is_whole = "", False
    try:
        for chunk in made:
            models.add(chunk.model)
            for choice in chunk.choices:
                text += choice.delta.content or ""
                is_whole = is_whole or choice.finish_reason is not None
    except (openai.APIError, httpx2.HTTPError):  # its worker or its process is gone
        is_whole = False
    return RoutedAnswer(prompt, began, time.monotonic(), header, frozenset(models), text if is_whole else None)

"""Links to the console that open nothing, and paths that lead out of its folder."""

import os
import time
from collections import Counter
from collections.abc import Iterator

from jobs.security.sign_in import create_token, links_folder
from tests.badinputs.case import Case
from tests.badinputs.world import World, at_once, raw_said, said

AREA = "Console"
SESSION = "/console/session"
LIFETIME = 900.0
_CLIENTS = 50

TOKENS: dict[str, object] = {
    "a token that nobody made": "x" * 43,
    "an empty token": "",
    "a path for a token": "../../operator.key",
    "a digest for a token": "0" * 64,
    "a token that is not ASCII": "ÿ€😀",
}
#: Spellings of the way from the assets to the code, the keys and the routes.
PATHS = (
    "../index.html", "../../routes.py", "../../../../operator.key", "%2e%2e/%2e%2e/routes.py", "..%2f..%2froutes.py",
    "..%5c..%5croutes.py", "....//....//routes.py", "%252e%252e%252froutes.py", "/etc/passwd", "%2fetc%2fpasswd",
    ".", "..", "./", "a/b.js", "%c0%ae%c0%ae/routes.py", "a.js/", "a.js;b", "%0d%0aX:y",
)  # fmt: skip


def token_of(world: World) -> str:
    """Return a token of a link, with an operator's key that it opens."""
    (world.data / "operator.key").write_text(world.key)
    return create_token(world.data, LIFETIME)


def sign_in(world: World, token: object) -> str:
    """Exchange a token beside a link that stays as it is."""
    right = token_of(world)
    wrong = said(world.nobody.post(SESSION, json={"token": token}))
    return f"{wrong}, the right one {said(world.nobody.post(SESSION, json={'token': right}))}"


def expired(world: World) -> str:
    token = token_of(world)
    for path in links_folder(world.data).iterdir():
        os.utime(path, (time.time() - LIFETIME - 60,) * 2)
    return said(world.nobody.post(SESSION, json={"token": token}))


def at_one_moment(world: World) -> str:
    """Exchange one token in fifty requests at once, and once more after a restart of the web process."""
    token = token_of(world)
    answers = Counter(at_once(_CLIENTS, lambda _: said(world.nobody.post(SESSION, json={"token": token}))))
    world.restart_web()
    later = said(world.nobody.post(SESSION, json={"token": token}))
    return f"{', '.join(f'{count} of {answer}' for answer, count in sorted(answers.items()))}, later {later}"


def forms(world: World) -> str:
    """Send the token as pages of other sites can, without a preflight."""
    token = token_of(world)
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    content = f'{{"token": "{token}"}}'
    answers = {said(world.nobody.post(SESSION, content=content, headers={"Content-Type": kind})) for kind in kinds}
    return " | ".join(sorted(answers))


def paths(world: World) -> str:
    """Ask for files beside the assets, without a key and without a client that shortens paths."""
    ask = "GET /console/assets/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = [world.raw(ask.format(path).encode()) for path in PATHS]
    leaks = sum(b"import " in answer or b"nm_" in answer or b"root:" in answer for answer in answers)
    return f"{' | '.join(sorted({raw_said(answer) for answer in answers}))}, {leaks} leaks"


def logged(world: World) -> str:
    """Send tokens where they belong and where not, with debugging on; count them in the logs."""
    tokens = [token_of(world) for _ in range(3)]
    world.nobody.post(SESSION, json={"token": tokens[0]})
    world.nobody.post(SESSION, json={"token": tokens[1], tokens[1]: 1})
    world.nobody.post(f"{SESSION}?token={tokens[2]}", json={})
    return f"{sum(token in world.log() for token in tokens)} logged"


def cases() -> Iterator[Case]:
    for name, token in TOKENS.items():
        run = lambda world, token=token: sign_in(world, token)  # noqa: E731
        yield Case(AREA, name, "401 invalid_sign_in_token, the right one 200", run)
    yield Case(AREA, "a link that has expired", "401 invalid_sign_in_token", expired)
    once = f"1 of 200, {_CLIENTS - 1} of 401 invalid_sign_in_token, later 401 invalid_sign_in_token"
    yield Case(AREA, "one link in 50 requests at once", once, at_one_moment, seconds=10)
    yield Case(AREA, "forms of other sites", "415 unsupported_media_type", forms)
    yield Case(AREA, "paths out of the assets", "404 unknown_url, 0 leaks", paths)
    yield Case(AREA, "a token in the logs", "0 logged", logged)

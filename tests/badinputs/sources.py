"""URLs of a store's sources: nothing inside is fetched, whether it is named, resolved or redirected to.

What is refused has a code at once. What a name hides is tried by a sync, and so is what a public site (one that only
these tests' guard takes for one) says: redirects to every payload, and answers that have no end. A page behind the bad
one comes in each time. The canary counts who came.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from tests.badinputs.case import Case
from tests.badinputs.host import SITE
from tests.badinputs.site import Site
from tests.badinputs.urls import NAMED, PAYLOADS
from tests.badinputs.world import World, said

AREA = "Sources"
REFUSED = "400 invalid_url, 0 connections"
HIDDEN = "url_unreachable: The URL cannot be fetched: address not public., 0 connections"
NEW = "https://new.example.com:{}/"  # nobody's at first, then inside
#: What a browser too takes for a path of the site, the site itself, or a name that nobody has.
AT_HOME = {
    "https:127.0.0.1:{}": "not_found",
    "https:/127.0.0.1:{}/": "not_found",
    "https:///127.0.0.1:{}/": "not_found",
    "127.0.0.1:{}": "not_found",
    "https://": "too_many_redirects",
    "https://good.example.com#@127.0.0.1:{}/": "url_unreachable",  # what is before the fragment
}
_numbers = itertools.count()
_SECONDS = 400.0


def offered(world: World, url: str) -> str:
    """Refused at once; or taken and synced twice, since a name may answer differently each time."""
    before = world.canary.connections
    made = _create(world, [_here(world, url)])
    if made.status_code != 200:
        return f"{said(made)}, {world.canary.connections - before} connections"
    first = _items(world, made.json())
    second = _items(world, _synced(world, made.json()))
    told = dict.fromkeys(_said(item) for item in (*first, *second))
    return f"{' | '.join(told)}, {world.canary.connections - before} connections"


def redirected(world: World, place: str) -> str:
    """Sync all redirects once; return the outcome, and how many requests reached the canary."""
    told, visitors = world.once("redirects", lambda: _all_redirects(world))
    return f"{told[place]}, {visitors} connections"


def _all_redirects(world: World) -> tuple[dict[str, str], int]:
    before = world.canary.connections
    _open_site(world)
    urls = {}
    for place in (*PAYLOADS, NEW):
        there = _here(world, place)
        urls[_url(world, f"to?place={quote(there, safe='')}")] = place
    items = _items(world, _create(world, list(urls)).json())
    return {urls[item["key"]]: _code(item) for item in items}, world.canary.connections - before


def moved(world: World, name: str, path: str, *, again: bool) -> str:
    """Sync a name that resolves to the site at first and to the canary afterwards."""
    before = world.canary.connections
    host = f"n{next(_numbers)}-at-{name}"
    _open_site(world)
    place = quote(f"https://{host}:{world.canary.port}/page", safe="")
    source = _create(world, [f"https://{host}:{world.canary.port}/{path.replace('PLACE', place)}"]).json()
    told = [_said(item) for item in _items(world, source)]
    told += [_said(item) for item in _items(world, _synced(world, source))] if again else []
    return f"{', then '.join(told)}, {world.canary.connections - before} connections"


def behaving(world: World, path: str) -> str:
    """Return the outcome of a bad page, of its document in the store, and of a good page behind it."""
    before = world.canary.connections
    _open_site(world)
    bad, good = _url(world, path.replace(" ", "-")), _url(world, "page")
    source = _create(world, [bad, good]).json()
    items = {item["key"]: item for item in _items(world, source)}
    told = [
        _said(items[bad]),
        *_fate(world, source, items[bad]),
        _said(items[good]),
        *_fate(world, source, items[good]),
    ]
    visitors = world.canary.connections - before
    return ", ".join(told) + (f", {visitors} connections" if visitors else "")


# ── what is asked ──


def _open_site(world: World) -> Site:
    return world.once("site", lambda: world.keep(Site(SITE, world.canary.port, world.tls)))


def _here(world: World, url: str) -> str:
    return url.replace("{}", str(world.canary.port)).replace(
        "new.example.com", f"n{next(_numbers)}-at-late.example.com"
    )


def _url(world: World, path: str) -> str:
    return f"https://site.example.com:{world.canary.port}/{path}"


def _create(world: World, urls: Sequence[str]) -> Any:
    store = world.once("store", lambda: world.client.post("/v1/vector_stores", json={}).json()["id"])
    return world.client.post(f"/v1/vector_stores/{store}/sources", json={"type": "url", "urls": list(urls)})


def _synced(world: World, source: dict[str, Any]) -> dict[str, Any]:
    return dict(world.client.post(f"{_path(source)}/sync").json())


def _path(source: dict[str, Any]) -> str:
    return f"/v1/vector_stores/{source['vector_store_id']}/sources/{source['id']}"


def _items(world: World, source: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of a source, once its sync has ended."""
    path = _path(source)

    def over() -> bool:
        return str(world.client.get(path).json()["status"]) != "in_progress"

    world.eventually(over, f"the end of the sync of {source['id']}", _SECONDS, every=0.1)
    found, after = [], {}
    while True:
        page = world.client.get(f"{path}/items", params={"limit": 100, **after}).json()
        found += page["data"]
        if not page["has_more"]:
            return found
        after = {"after": page["last_id"]}


def _said(item: dict[str, Any]) -> str:
    error = item["last_error"]
    return f"{error['code']}: {error['message']}" if error else str(item["last_change"])


def _code(item: dict[str, Any]) -> str:
    error = item["last_error"]
    return str(error["code"]) if error else str(item["last_change"])


def _fate(world: World, source: dict[str, Any], item: dict[str, Any]) -> list[str]:
    """Return what the store says of the file that an item became."""
    if item["file_id"] is None:
        return []
    file = world.client.get(f"/v1/vector_stores/{source['vector_store_id']}/files/{item['file_id']}").json()
    return [str(file["last_error"]["code"] if file["last_error"] else file["status"])]


_GOOD = "added, completed"
_UNREACHABLE = "url_unreachable: The URL cannot be fetched:"
BEHAVIOURS = {
    "hops/5": f"{_GOOD}, {_GOOD}",
    "hops/30": f"too_many_redirects: The URL leads on more than 5 times., {_GOOD}",
    "endless": f"file_too_large: It has more than 20000000 bytes., {_GOOD}",
    "endless chunks": f"{_UNREACHABLE} timeout., {_GOOD}",
    "endless head": f"{_UNREACHABLE} answer not http., {_GOOD}",
    "endless line": f"{_UNREACHABLE} answer not http., {_GOOD}",
    "endless warnings": f"{_UNREACHABLE} timeout., {_GOOD}",
    "slow body": f"{_UNREACHABLE} timeout., {_GOOD}",
    "slow head": f"{_UNREACHABLE} timeout., {_GOOD}",
    "silent": f"{_UNREACHABLE} timeout., {_GOOD}",
    "bomb": f"content_encoding: The server compresses its answer, although it was asked not to., {_GOOD}",
    "packed file": f"added, unsupported_file, {_GOOD}",
    "cut": f"{_UNREACHABLE} answer broken., {_GOOD}",
    "two lengths": f"{_UNREACHABLE} answer not http., {_GOOD}",
    "an odd chunk": f"{_UNREACHABLE} answer not http., {_GOOD}",
    "nonsense": f"{_UNREACHABLE} answer not http., {_GOOD}",
    "nothing": f"{_UNREACHABLE} connection closed., {_GOOD}",
}
#: One of each kind; the others are tried with `--full`.
CHOICE = frozenset({"hops/30", "endless", "endless head", "slow body", "bomb", "nonsense"})


def cases() -> Iterator[Case]:
    facts: dict[str, Any] = {"creates": True, "world": "sourced", "seconds": 30}
    for url in PAYLOADS:
        expected = HIDDEN if url in NAMED else REFUSED
        yield Case(AREA, ascii(url)[1:-1], expected, lambda w, url=url: offered(w, url), **facts)
    expected = f"{_UNREACHABLE} name not resolved. | {HIDDEN}"
    yield Case(AREA, "a name that is new, and inside", expected, lambda world: offered(world, NEW), **facts)
    for place in (*PAYLOADS, NEW):
        code = "url_unreachable" if place in (*NAMED, NEW) else AT_HOME.get(place, "url_refused")
        run = lambda world, place=place: redirected(world, place)  # noqa: E731
        yield Case(AREA, f"a redirect to {ascii(place)[1:-1]}", f"{code}, 0 connections", run, **facts)
    for name in ("moves.example.com", "moves6.example.com", "moves-in-part.example.com"):
        run = lambda world, name=name: moved(world, name, "page", again=True)  # noqa: E731
        yield Case(AREA, f"rebinding: {name}, at the next sync", f"added, then {HIDDEN}", run, **facts)
        run = lambda world, name=name: moved(world, name, "to?place=PLACE", again=False)  # noqa: E731
        yield Case(AREA, f"rebinding: {name}, at a redirect", HIDDEN, run, **facts)
    for path, expected in BEHAVIOURS.items():
        run = lambda world, path=path: behaving(world, path)  # noqa: E731
        yield Case(AREA, f"a site: {path}", expected, run, **facts, full=path not in CHOICE)

"""Conversations in storage: appended to without being written anew, and read no further than a page needs."""

import random
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from api import shares
from api.deps import CallContext, Caller
from api.inference import stored_conversations
from jobs.errors import NotFound
from jobs.inference import conversations
from jobs.inference.tables import Conversation
from tests.support.orphan_files import look_twice
from tests.support.web import hurry, make_key
from tests.unit.api.conftest import client_of


def _words(*texts: str) -> dict[str, Any]:
    return {"items": [{"role": "user", "content": text} for text in texts]}


def _create(client: TestClient, *texts: str) -> str:
    made = client.post("/v1/conversations", json=_words(*texts))
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def _say(client: TestClient, talk: str, *texts: str) -> list[dict[str, Any]]:
    answer = client.post(f"/v1/conversations/{talk}/items", json=_words(*texts))
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["data"]
    return items


def _text(item: dict[str, Any]) -> str:
    return str(item["content"][0]["text"])


def _pages(client: TestClient, talk: str, limit: int, order: str = "asc") -> list[list[str]]:
    """Return the texts of a conversation, page by page."""
    pages, params = list[list[str]](), {"limit": str(limit), "order": order}
    while True:
        answer = client.get(f"/v1/conversations/{talk}/items", params=params).json()
        pages.append([_text(item) for item in answer["data"]])
        if not answer["has_more"]:
            return pages
        params["after"] = answer["last_id"]


def _texts(client: TestClient, talk: str) -> list[str]:
    return [text for page in _pages(client, talk, 100) for text in page]


class _Searched(bytes):
    """An object of a conversation that counts how often it is looked through for the text of an id."""

    times = 0

    def __contains__(self, needle: Any) -> bool:
        _Searched.times += 1
        return super().__contains__(needle)


class _Objects:
    """A conversation of `segments` objects with ten items each."""

    def __init__(self, segments: int) -> None:
        rows = [[f"msg_{n}" for n in range(10 * k, 10 * k + 10)] for k in range(segments)]
        raws = [[msgspec.Raw(msgspec.json.encode({"id": name})) for name in names] for names in rows]
        self._objects = [(f"p{k}", _Searched(conversations.encode((), raw))) for k, raw in enumerate(raws)]

    def objects(self, *, newest_first: bool) -> list[tuple[str, bytes]]:
        return list(reversed(self._objects)) if newest_first else list(self._objects)


@pytest.mark.parametrize(("wanted", "most"), [(1, 5), (5_000, 0)])
def test_many_ids_are_found_without_a_search_for_each(wanted: int, most: int) -> None:
    _Searched.times = 0
    names = {f"msg_{n}" for n in range(wanted)}

    found = stored_conversations._find(_Objects(5), names)  # type: ignore[arg-type]

    assert [item["id"] for item in found] == [f"msg_{n}" for n in range(min(wanted, 50))]
    assert _Searched.times <= most


def _objects(app: FastAPI) -> list[str]:
    found: list[str] = app.state.services.storage.list("conversations")
    return found


def _as_of_before(app: FastAPI, talk: str) -> str:
    """Store a conversation as an earlier version did: as one flat object, which is the list of its items."""
    services = app.state.services
    path = f"conversations/{talk}-{'0' * 24}"
    with services.db.write() as session:
        head = conversations.Head(services.storage, session.get(Conversation, talk).path)
        items = [msgspec.json.decode(item) for _, raw in head.objects() for item in conversations.items_in(raw)]
        services.storage.put(path, msgspec.json.encode(items))
        session.execute(update(Conversation).where(Conversation.id == talk).values(path=path))
    services.storage.delete(f"conversations/{talk}")
    return path


@pytest.fixture
def written(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of what is written to storage."""
    storage, sizes = app.state.services.storage, list[int]()
    put = storage.put

    def note(path: str, data: bytes) -> None:
        sizes.append(len(data))
        put(path, data)

    monkeypatch.setattr(storage, "put", note)
    return sizes


@pytest.fixture
def read(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of what is read from storage."""
    storage, sizes = app.state.services.storage, list[int]()
    reader = storage.reader

    def note(path: str, offset: int = 0) -> Any:
        sizes.append(storage.size(path))
        return reader(path, offset)

    monkeypatch.setattr(storage, "reader", note)
    return sizes


@pytest.mark.parametrize("old", [False, True])
def test_bytes_written_by_append_do_not_grow_with_conversation(
    app: FastAPI, client: TestClient, written: list[int], old: bool
) -> None:
    talk = _create(client, *["x" * 190_000] * 20)
    for _ in range(2):
        _say(client, talk, *["y" * 190_000] * 20)
    if old:
        _as_of_before(app, talk)
    written.clear()

    for n in range(30):
        _say(client, talk, f"word {n}")

    assert len(written) == 30
    assert sum(written) < 1_000_000
    assert [len(text) for text in _texts(client, talk)[:60]] == [190_000] * 60
    assert _texts(client, talk)[60:] == [f"word {n}" for n in range(30)]


def test_many_small_appends_write_at_most_a_segment_each(
    client: TestClient, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "SEGMENT_BYTES", 2000)
    talk = _create(client)

    for n in range(60):
        _say(client, talk, f"{n} " + "x" * 50)

    assert max(written) < 2000 + 15 * 100
    assert [text.split()[0] for text in _texts(client, talk)] == [str(n) for n in range(60)]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_reads_no_object_beyond_it(
    client: TestClient, read: list[int], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(conversations, "SEGMENT_BYTES", 1)  # each append is an object
    texts = [f"{n} " + "x" * 2000 for n in range(40)]
    talk = _create(client, *texts[:2])
    for n in range(2, 40, 2):
        _say(client, talk, *texts[n : n + 2])
    read.clear()

    page = client.get(f"/v1/conversations/{talk}/items", params={"limit": 3, "order": order}).json()

    assert [_text(item) for item in page["data"]] == (texts[:3] if order == "asc" else texts[:-4:-1])
    assert sum(read) < 20_000


def test_single_item_is_read_without_preceding_objects(client: TestClient, read: list[int]) -> None:
    talk = _create(client, *["x" * 100_000] * 20)
    [item] = _say(client, talk, "word")
    read.clear()

    assert client.get(f"/v1/conversations/{talk}/items/{item['id']}").json() == item
    assert sum(read) < 1000


def test_a_conversation_of_an_earlier_version_goes_on(app: FastAPI, client: TestClient) -> None:
    talk = _create(client, *[f"old {n} " + "x" * 50_000 for n in range(8)])
    flat = _as_of_before(app, talk)
    ids = [item["id"] for item in client.get(f"/v1/conversations/{talk}/items?order=asc").json()["data"]]

    _say(client, talk, "new")
    with_new = [text.split("x")[0] for text in _texts(client, talk)]
    objects = _objects(app)
    assert client.delete(f"/v1/conversations/{talk}/items/{ids[3]}").status_code == 200
    without = [text.split("x")[0] for text in _texts(client, talk)]

    assert with_new == [*(f"old {n} " for n in range(8)), "new"]
    assert flat in objects
    assert without == [text for text in with_new if text != "old 3 "]
    assert flat not in _objects(app)


def test_small_conversation_of_earlier_version_stays_single_object(app: FastAPI, client: TestClient) -> None:
    talk = _create(client, "old")
    flat = _as_of_before(app, talk)

    _say(client, talk, "new")

    assert _texts(client, talk) == ["old", "new"]
    assert len(_objects(app)) == 1
    assert flat not in _objects(app)


@pytest.mark.parametrize("old", [False, True])
def test_all_objects_of_a_deleted_conversation_go(app: FastAPI, client: TestClient, old: bool) -> None:
    talk = _create(client, *["x" * 100_000] * 5)
    if old:
        _as_of_before(app, talk)
    _say(client, talk, "word")
    assert len(_objects(app)) == 2

    assert client.delete(f"/v1/conversations/{talk}").json()["deleted"]

    assert _objects(app) == []


@pytest.mark.parametrize("seed", range(3))
def test_random_appends_and_deletes_leave_remaining_items_in_order(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(conversations, "SEGMENT_BYTES", 700)
    chance, numbers, model = random.Random(seed), count(), list[dict[str, Any]]()
    talk = _create(client)

    for _ in range(40):
        if model and chance.random() < 0.4:
            gone = model.pop(chance.randrange(len(model)))
            path = f"/v1/conversations/{talk}/items/{gone['id']}"
            assert client.delete(path).status_code == 200
            assert client.get(path).json()["error"]["message"] == f"Item with id '{gone['id']}' not found."
        else:
            model += _say(client, talk, *(f"{next(numbers)}" for _ in range(chance.randint(1, 5))))

    for item in model[:10]:
        assert client.get(f"/v1/conversations/{talk}/items/{item['id']}").json() == item
    expected = [_text(item) for item in model]
    limit = chance.randint(1, 4)
    assert [text for page in _pages(client, talk, limit) for text in page] == expected
    assert [text for page in _pages(client, talk, limit, "desc") for text in page] == expected[::-1]
    assert all(len(page) == limit for page in _pages(client, talk, limit)[:-1])
    held = app.state.services.storage.list("conversations")
    look_twice(app.state.services.config, app.state.services.db, app.state.services.storage)
    assert _objects(app) == held
    assert _texts(client, talk) == expected


def test_a_cursor_that_names_no_item_is_refused(client: TestClient) -> None:
    talk = _create(client, "a")

    for after in ("msg_none", '"', "role"):
        error = client.get(f"/v1/conversations/{talk}/items", params={"after": after}).json()["error"]
        assert (error["param"], error["code"]) == ("after", "invalid_cursor")


def test_append_to_locked_conversation_returns_409_with_retry_after(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    hurry(app, conversation_patience=0.01)
    talk, other = _create(client, "a"), _create(client, "b")
    with app.state.services.db.read() as session:
        project = session.get(Conversation, talk).project_id

    with app.state.services.changing.hold(f"{project}/{talk}", 0) as held:
        assert held
        refused = client.post(f"/v1/conversations/{talk}/items", json=_words("c"))
        _say(client, other, "d")
        foreign = stranger.post(f"/v1/conversations/{talk}/items", json=_words("c"))

    assert (refused.status_code, refused.headers["Retry-After"], refused.headers["x-should-retry"]) == (
        409,
        "1",
        "true",
    )
    assert refused.json()["error"]["code"] == "conversation_locked"
    assert foreign.status_code == 404
    assert (_texts(client, talk), _texts(client, other)) == (["a"], ["b", "d"])
    _say(client, talk, "e")


def test_append_that_always_loses_race_is_refused_after_bounded_retries(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, services, tries = _create(client, "a"), app.state.services, list[str]()
    put = services.storage.put

    def put_after_another(path: str, data: bytes) -> None:
        put(path, data)
        tries.append(path)
        with services.db.write() as session:
            mine = update(Conversation).where(Conversation.id == talk)
            session.execute(mine.values(version=Conversation.version + 1))

    monkeypatch.setattr(services.storage, "put", put_after_another)
    refused = client.post(f"/v1/conversations/{talk}/items", json=_words("b"))

    assert (refused.status_code, refused.headers["Retry-After"]) == (409, "1")
    assert 2 <= len(tries) <= 5
    assert _texts(client, talk) == ["a"]
    assert len(_objects(app)) == 1


def test_retried_conversation_read_reserves_bytes_once(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, services, heads = _create(client, "a" * 1000), app.state.services, list[conversations.Head]()
    with services.db.read() as session:
        call = CallContext(services, Caller("k", session.get(Conversation, talk).project_id), "req")
    objects = conversations.Head.objects

    def replaced(head: conversations.Head, **options: Any) -> Any:
        if options:  # an append looks here
            return objects(head, **options)
        heads.append(head)
        if len(heads) < 3:
            _say(client, talk, "b")
            raise NotFound
        return objects(head)

    monkeypatch.setattr(conversations.Head, "objects", replaced)
    usage = shares.RequestShare(shares.ProjectShare(1, 1 << 20))
    token = shares.current.set(usage)
    try:
        assert len(stored_conversations.load(call, talk)) == 3
    finally:
        shares.current.reset(token)

    usage.reserve((1 << 20) - heads[-1].size)  # all but the bytes of the last read are free
    with pytest.raises(shares.ProjectBusy):
        usage.reserve(1)


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
@pytest.mark.parametrize("segment_bytes", [1, 1 << 18])
def test_two_processes_that_append_at_once_lose_nothing(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch, moment: str, segment_bytes: int
) -> None:
    monkeypatch.setattr(conversations, "SEGMENT_BYTES", segment_bytes)
    one, two = make_app(), make_app()
    key = make_key(one)
    mine, other = client_of(one, key), client_of(two, key)
    talk, late = _create(mine, "a"), iter(["other"])
    target, name = (
        (one.state.services.storage, "put") if moment == "before the commit" else (stored_conversations, "_tidy")
    )
    step = getattr(target, name)

    def interrupted(*args: Any) -> Any:
        for text in late:
            _say(other, talk, text)
        return step(*args)

    monkeypatch.setattr(target, name, interrupted)
    _say(mine, talk, "mine")
    monkeypatch.undo()
    monkeypatch.setattr(conversations, "SEGMENT_BYTES", segment_bytes)
    services = one.state.services
    look_twice(services.config, services.db, services.storage)

    first, second = ("other", "mine") if moment == "before the commit" else ("mine", "other")
    assert _texts(mine, talk) == ["a", first, second]
    assert len(_objects(one)) == (3 if segment_bytes == 1 else 1)
    _say(mine, talk, "again")
    assert _texts(other, talk) == ["a", first, second, "again"]


def test_orphaned_objects_are_removed_and_referenced_objects_stay(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    talk, services = _create(client, *["x" * 100_000] * 5), either.state.services
    _say(client, talk, "word")
    held = _objects(either)
    for path in (
        f"conversations/{talk}/lost",
        f"conversations/{talk}-lost",
        "conversations/conv_1/a",
        "conversations/conv_2-a",
    ):
        services.storage.put(path, b"[]")

    look_twice(services.config, services.db, services.storage)

    assert len(held) == 2
    assert _objects(either) == held
    assert list(services.storage.folders("conversations")) == [talk]
    assert _texts(client, talk)[5:] == ["word"]

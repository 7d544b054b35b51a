"""Vector stores: what an SDK's own methods and polling helpers do with them. Run by `suite.py`, after its checks.

The engine behind is the fake one: it knows no meaning, but the same text has the same vector. So what is found by words
is told by words, and what is found by vectors is asked by a chunk's own text.
"""

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
from checking import FACTS, MODEL, check, client, ended, facts_of, fresh, input_file, lines_of, raised, raw, same, until

stores = client.vector_stores
files = client.vector_stores.files
batches = client.vector_stores.file_batches

CAT = "A cat purrs when it is content."
ROCKET = "A rocket burns kerosene and oxygen."
BREAD = "Bread rises because yeast breathes."
TEXTS = {"cat.md": CAT, "rocket.txt": ROCKET, "bread.html": f"<html><body><p>{BREAD}</p></body></html>"}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "cat.md": {"about": "animals", "year": 2021, "old": True},
    "rocket.txt": {"about": "machines", "year": 2024, "old": False},
    "bread.html": {"about": "food", "year": 2025},
}
#: One black pixel, and an archive of one text.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
ARCHIVE = base64.b64decode(
    "UEsDBBQAAAAAAGCheV2DFtyMAQAAAAEAAAAFAAAAYS50eHR4UEsBAhQDFAAAAAAAYKF5XYMW3IwBAAAAAQAAAAUAAAAAAAAAAAAAAIABAAAAAGEu"
    "dHh0UEsFBgAAAAABAAEAMwAAACQAAAAAAA=="
)
#: Words that one text has, and the one at which the fake engine names the first excerpt.
QUESTION = "What burns kerosene? !cite"
#: The fake engine's vectors say nothing of meaning.
MOSTLY_WORDS: Any = {"hybrid_search": {"embedding_weight": 1, "text_weight": 9}}
RESPONSES = "/v1/responses"
RESULTS: Any = ["file_search_call.results"]
SMALL: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}


def upload(name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return client.files.create(file=(name, data), purpose="user_data").id


@contextmanager
def a_store(**more: Any) -> Iterator[str]:
    made = stores.create(name=fresh("store"), **more)
    try:
        yield made.id
    finally:
        stores.delete(made.id)


@contextmanager
def a_library() -> Iterator[tuple[str, dict[str, str]]]:
    """Create a store with the three texts and their attributes; return the ids of the files by name."""
    with a_store() as store:
        ids = {name: upload(name, text) for name, text in TEXTS.items()}
        for name, file in ids.items():
            files.create(store, file_id=file, attributes=ATTRIBUTES[name])
        for file in ids.values():
            same(files.poll(file, vector_store_id=store).status, "completed")
        yield store, ids


def counts_of(counted: Any) -> tuple[int, ...]:
    counts = counted.file_counts
    return (counts.total, counts.in_progress, counts.completed, counts.failed, counts.cancelled)


def names_of(found: Any) -> list[str]:
    return [one.filename for one in found]


@check("a vector store is created, retrieved, changed, listed and deleted")
def _() -> None:
    made = stores.create(
        name="first", expires_after={"anchor": "last_active_at", "days": 3}, metadata={"mark": fresh("mark")}
    )
    others = [stores.create(name=f"more-{n}").id for n in range(4)]

    same((made.object, made.name, made.status, made.usage_bytes), ("vector_store", "first", "completed", 0))
    same((made.expires_after.anchor, made.expires_after.days), ("last_active_at", 3))
    same(made.expires_at, made.last_active_at + 3 * 86_400)
    same(stores.retrieve(made.id), made)
    changed = stores.update(made.id, name="other", expires_after=None, metadata={"mark": "changed"})
    same((changed.name, changed.expires_after, changed.expires_at), ("other", None, None))
    same(stores.retrieve(made.id).metadata, {"mark": "changed"})
    mine = [made.id, *others]
    pages = [[one.id for one in page.data] for page in stores.list(limit=2).iter_pages()]
    same([len(page) for page in pages], [2, 2, 1])
    same([one for page in pages for one in page], mine[::-1])
    same([one.id for one in stores.list(limit=2, order="asc")], mine)
    same([one.id for one in stores.list(after=mine[1], order="asc")], mine[2:])
    same([one.id for one in stores.list(before=mine[1], order="asc")], mine[:1])
    for one in mine:
        gone = stores.delete(one)
        same((gone.id, gone.object, gone.deleted), (one, "vector_store.deleted", True))
        raised(openai.NotFoundError, stores.retrieve, one)


@check("a file is brought into a vector store, read, described and taken out")
def _() -> None:
    with a_store() as store:
        file = upload("rocket.txt", ROCKET)
        done = files.create_and_poll(file, vector_store_id=store, attributes={"year": 2024}, chunking_strategy=SMALL)

        same((done.id, done.object, done.vector_store_id), (file, "vector_store.file", store))
        same((done.status, done.last_error, done.attributes), ("completed", None, {"year": 2024}))
        same((done.chunking_strategy.type, done.chunking_strategy.static.max_chunk_size_tokens), ("static", 100))
        assert done.usage_bytes > len(ROCKET), done.usage_bytes
        same(files.retrieve(file, vector_store_id=store), done)
        same([(one.type, one.text) for one in files.content(file, vector_store_id=store)], [("text", ROCKET)])
        told_of = files.update(file, vector_store_id=store, attributes={"about": "rockets", "old": False})
        same(told_of.attributes, {"about": "rockets", "old": False})
        whole = stores.retrieve(store)
        same((counts_of(whole), whole.usage_bytes), ((1, 0, 1, 0, 0), done.usage_bytes))

        gone = files.delete(file, vector_store_id=store)
        same((gone.id, gone.object, gone.deleted), (file, "vector_store.file.deleted", True))
        raised(openai.NotFoundError, files.retrieve, file, vector_store_id=store)
        same(list(stores.search(store, query=ROCKET)), [])
        same(client.files.retrieve(file).id, file)


@check("a file is uploaded into a vector store")
def _() -> None:
    with a_store() as store:
        done = files.upload_and_poll(vector_store_id=store, file=("cat.md", CAT.encode()), chunking_strategy=SMALL)
        begun = files.upload(vector_store_id=store, file=("rocket.txt", ROCKET.encode()))
        then = files.poll(begun.id, vector_store_id=store, poll_interval_ms=50)

        same((done.status, then.id, then.status), ("completed", begun.id, "completed"))
        same([client.files.retrieve(one.id).purpose for one in (done, then)], ["assistants"] * 2)
        same([one.id for one in files.list(store, order="asc")], [done.id, begun.id])


@check("a file that cannot be read has failed, and says why")
def _() -> None:
    with a_store() as store:
        bad = files.upload_and_poll(vector_store_id=store, file=("archive.zip", ARCHIVE))
        black = files.upload_and_poll(vector_store_id=store, file=("picture.png", PICTURE))
        empty = files.create_and_poll(upload("empty.txt", "   \n"), vector_store_id=store)
        good = files.create_and_poll(upload("cat.md", CAT), vector_store_id=store)

        same((bad.status, bad.last_error.code, bad.usage_bytes), ("failed", "unsupported_file", 0))
        same((empty.status, empty.last_error.code), ("failed", "invalid_file"))
        assert bad.last_error.message, "no message"
        same((black.status, black.usage_bytes), ("failed", 0))
        # Where Tesseract is installed a picture can be read, and this one has no text.
        assert black.last_error.code in ("unsupported_file", "invalid_file"), black.last_error
        failed = [one.id for one in files.list(store, filter="failed", order="asc")]
        same(failed, [bad.id, black.id, empty.id])
        same([one.id for one in files.list(store, filter="completed")], [good.id])
        same(counts_of(stores.retrieve(store)), (4, 0, 1, 3, 0))
        same(list(files.content(bad.id, vector_store_id=store)), [])


@check("files are brought into a vector store together")
def _() -> None:
    with a_store() as store:
        ids = [upload(name, text) for name, text in TEXTS.items()]
        done = batches.create_and_poll(store, file_ids=[*ids, ids[0]], chunking_strategy=SMALL)
        uploaded = batches.upload_and_poll(
            store, files=[(f"n{n}.txt", f"number {n}".encode()) for n in range(5)], file_ids=[upload("a.zip", ARCHIVE)]
        )

        same((done.object, done.vector_store_id, done.status), ("vector_store.files_batch", store, "completed"))
        same(counts_of(done), (3, 0, 3, 0, 0))
        same((uploaded.status, counts_of(uploaded)), ("completed", (6, 0, 5, 1, 0)))
        same(batches.retrieve(done.id, vector_store_id=store), done)
        same(batches.poll(done.id, vector_store_id=store), done)
        listed = list(batches.list_files(done.id, vector_store_id=store, limit=2))
        same(sorted(one.id for one in listed), sorted(ids))
        same({one.chunking_strategy.static.max_chunk_size_tokens for one in listed}, {100})
        failed = list(batches.list_files(uploaded.id, vector_store_id=store, filter="failed"))
        same([one.last_error.code for one in failed], ["unsupported_file"])
        same(len(list(files.list(store, limit=4))), 9)
        conflict = raised(openai.ConflictError, batches.cancel, done.id, vector_store_id=store)
        same(facts_of(conflict), (409, "invalid_request_error", "invalid_state", None))


@check("files of one batch share attributes, or have their own")
def _() -> None:
    with a_store() as store:
        wanted = {upload(name, text): ATTRIBUTES[name] for name, text in TEXTS.items()}
        each: Any = [{"file_id": file, "attributes": attributes} for file, attributes in wanted.items()]
        if FACTS["sdk"] == "python-1.109":
            raw("file_batches.create(files=)")
            path = f"/vector_stores/{store}/file_batches"
            begun: Any = client.post(path, cast_to=object, body={"files": each})
            made = begun["id"]
        else:
            made = batches.create(store, files=each).id
        batch = batches.poll(made, vector_store_id=store)
        shared = batches.create(store, file_ids=[upload("a.txt", "a"), upload("b.txt", "b")], attributes={"shared": 1})
        batches.poll(shared.id, vector_store_id=store)

        same((batch.status, counts_of(batch)), ("completed", (3, 0, 3, 0, 0)))
        same([one.attributes for one in batches.list_files(shared.id, vector_store_id=store)], [{"shared": 1}] * 2)
        listed = {one.id: one.attributes for one in batches.list_files(batch.id, vector_store_id=store)}
        same(listed, wanted)


@check("a cancelled file batch brings in no more")
def _() -> None:
    with a_store() as store:
        slow = [upload(f"s{n}.txt", f"!slow {fresh('text')}") for n in range(3)]
        made = batches.create(store, file_ids=slow)
        same((made.status, counts_of(made)), ("in_progress", (3, 3, 0, 0, 0)))

        batches.cancel(made.id, vector_store_id=store)
        done = batches.poll(made.id, vector_store_id=store)

        same((done.status, counts_of(done)), ("cancelled", (3, 0, 0, 0, 3)))
        listed = list(batches.list_files(made.id, vector_store_id=store, filter="cancelled"))
        same(sorted(one.id for one in listed), sorted(slow))
        same(batches.cancel(made.id, vector_store_id=store).status, "cancelled")
        same(list(stores.search(store, query="slow")), [])


@check("a vector store is searched")
def _() -> None:
    with a_library() as (store, ids):
        page = stores.search(store, query="kerosene", rewrite_query=False)
        first = page.data[0]

        same((first.file_id, first.filename), (ids["rocket.txt"], "rocket.txt"))
        same([(one.type, one.text) for one in first.content], [("text", ROCKET)])
        same(first.attributes, ATTRIBUTES["rocket.txt"])
        assert 0 < first.score <= 1, first.score
        scores = [one.score for one in page]
        same(scores, sorted(scores, reverse=True))
        same(len(stores.search(store, query="kerosene", max_num_results=1).data), 1)
        both = stores.search(store, query=["purrs", "yeast"], max_num_results=2)
        same(set(names_of(both)), {"cat.md", "bread.html"})


@check("a search is filtered")
def _() -> None:
    with a_library() as (store, ids):

        def found(filters: Any) -> list[str]:
            return sorted(names_of(stores.search(store, query="anything", filters=filters)))

        def is_(kind: str, key: str, value: Any) -> dict[str, Any]:
            return {"type": kind, "key": key, "value": value}

        same(found(is_("eq", "about", "food")), ["bread.html"])
        same(found(is_("ne", "about", "food")), ["cat.md", "rocket.txt"])
        same(found(is_("gt", "year", 2024)), ["bread.html"])
        same(found(is_("gte", "year", 2024)), ["bread.html", "rocket.txt"])
        same(found(is_("lt", "year", 2024)), ["cat.md"])
        same(found(is_("lte", "year", 2024)), ["cat.md", "rocket.txt"])
        same(found(is_("eq", "old", True)), ["cat.md"])
        same(found(is_("in", "about", ["food", "animals"])), ["bread.html", "cat.md"])
        same(found(is_("nin", "about", ["food", "animals"])), ["rocket.txt"])
        either = {"type": "or", "filters": [is_("eq", "about", "food"), is_("lt", "year", 2022)]}
        same(found(either), ["bread.html", "cat.md"])
        same(found({"type": "and", "filters": [either, is_("ne", "old", True)]}), ["bread.html"])
        files.update(ids["cat.md"], vector_store_id=store, attributes={"about": "food"})
        same(found(is_("eq", "about", "food")), ["bread.html", "cat.md"])
        wrong = raised(openai.BadRequestError, found, is_("like", "about", "f"))
        same(facts_of(wrong), (400, "invalid_request_error", "invalid_value", "filters.type"))


@check("a search is ranked as it asks")
def _() -> None:
    with a_library() as (store, _ids):

        def found(query: str, embedding: float, text: float, threshold: float = 0.0) -> list[tuple[str, float]]:
            ranking = {
                "ranker": "auto",
                "score_threshold": threshold,
                "hybrid_search": {"embedding_weight": embedding, "text_weight": text},
            }
            hits = stores.search(store, query=query, extra_body={"ranking_options": ranking})
            return [(one.filename, round(one.score, 4)) for one in hits]

        same(found("kerosene", 0, 1), [("rocket.txt", 1.0)])
        same(found(BREAD, 1, 0, threshold=0.99), [("bread.html", 1.0)])
        same(len(found(BREAD, 1, 0)), 3)
        same(found(CAT, 1, 1)[0], ("cat.md", 1.0))
        options: Any = {"ranker": "auto", "score_threshold": 1.0}
        same(names_of(stores.search(store, query=CAT, ranking_options=options)), ["cat.md"])
        error = raised(openai.BadRequestError, found, "x", 0, 0)
        same(facts_of(error)[:2], (400, "invalid_request_error"))


@check("a vector store is made with its files, and they are listed page by page")
def _() -> None:
    ids = [upload(name, text) for name, text in TEXTS.items()]
    with a_store(file_ids=ids, chunking_strategy=SMALL) as store:
        until(lambda: stores.retrieve(store).status == "completed", "the files are in")

        same(counts_of(stores.retrieve(store)), (3, 0, 3, 0, 0))
        up = [one.id for one in files.list(store, order="asc")]
        same(sorted(up), sorted(ids))
        same([one.id for one in files.list(store)], up[::-1])
        same([[one.id for one in page.data] for page in files.list(store, limit=2).iter_pages()], [up[:0:-1], up[:1]])
        same([one.id for one in files.list(store, order="asc", after=up[0])], up[1:])
        same([one.id for one in files.list(store, order="asc", before=up[1])], up[:1])
        done = batches.create_and_poll(store, file_ids=ids)

        def listed(**asked: Any) -> Any:
            return batches.list_files(done.id, vector_store_id=store, **asked)

        up = [one.id for one in listed(order="asc")]
        same(sorted(up), sorted(ids))
        same(
            [[one.id for one in page.data] for page in listed(limit=2, order="desc").iter_pages()], [up[:0:-1], up[:1]]
        )
        same([one.id for one in listed(order="asc", after=up[0])], up[1:])
        same([one.id for one in listed(order="asc", before=up[1])], up[:1])
        same(list(listed(filter="failed")), [])


def asking(store: str, **more: Any) -> dict[str, Any]:
    """Request a response that searches a store and shows the results."""
    tool = {
        "type": "file_search",
        "vector_store_ids": [store],
        "max_num_results": 1,
        "ranking_options": MOSTLY_WORDS,
        **more,
    }
    return {"model": MODEL, "input": QUESTION, "tools": [tool], "include": RESULTS}


def fields(shown: Any) -> Any:
    return shown if isinstance(shown, dict) else shown.to_dict()


def check_cited(response: Any, file: str) -> None:
    """Check that the response searched, found only this file, and cites it at its name."""
    call, message = map(fields, response["output"] if isinstance(response, dict) else response.output)
    same((call["type"], call["status"], call["queries"]), ("file_search_call", "completed", [QUESTION]))
    [result], [part] = call["results"], message["content"]
    same((result["file_id"], result["filename"], result["text"]), (file, "rocket.txt", ROCKET))
    same(result["attributes"], ATTRIBUTES["rocket.txt"])
    assert 0 < result["score"] <= 1, result["score"]
    assert part["text"].startswith("echo "), part["text"]
    check_citation(part["annotations"], part["text"], file)


def check_citation(annotations: Any, text: str, file: str) -> None:
    [citation] = map(fields, annotations)
    same((citation["type"], citation["file_id"], citation["filename"]), ("file_citation", file, "rocket.txt"))
    same(citation["index"], text.index("[1]"))


@check("a response searches files and cites them")
def _() -> None:
    with a_library() as (store, ids):
        made = client.responses.create(**asking(store))
        plain = client.responses.create(**{**asking(store), "include": None, "store": False})
        food: Any = {"type": "eq", "key": "about", "value": "food"}
        filtered = client.responses.create(**asking(store, filters=food))
        nothing = client.responses.create(**asking(store, filters={**food, "value": "drink"}))

        same(made.status, "completed")
        check_cited(made, ids["rocket.txt"])
        same([fields(tool)["type"] for tool in made.tools], ["file_search"])
        check_cited(client.responses.retrieve(made.id, include=RESULTS), ids["rocket.txt"])
        for hidden in (plain, client.responses.retrieve(made.id)):
            same(hidden.output[0].results, None)
            check_citation(hidden.output[1].content[0].annotations, hidden.output_text, ids["rocket.txt"])
        same([one.filename for one in filtered.output[0].results], ["bread.html"])
        same((nothing.output[0].results, nothing.output[1].content[0].annotations), ([], []))
        error = raised(openai.NotFoundError, client.responses.create, **asking("vs_none"))
        same(facts_of(error), (404, "invalid_request_error", "vector_store_not_found", "tools"))


@check("a response that searches files is streamed")
def _() -> None:
    with a_library() as (store, ids):
        events = list(client.responses.create(**asking(store), stream=True))
        with client.responses.stream(**asking(store)) as stream:
            helped = [event.type for event in stream]
            final = stream.get_final_response()

        kinds = [event.type for event in events]
        steps = [kind for kind in kinds if kind.startswith("response.file_search_call.")]
        same(steps, [f"response.file_search_call.{step}" for step in ("in_progress", "searching", "completed")])
        assert kinds.index(steps[-1]) < kinds.index("response.output_text.delta"), kinds
        same([event.sequence_number for event in events], list(range(len(events))))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        added = [event.annotation for event in events if event.type == "response.output_text.annotation.added"]
        check_citation(added, text, ids["rocket.txt"])
        same((kinds[-1], helped), ("response.completed", kinds))
        for whole in (events[-1].response, final):
            same(whole.output_text, text)
            check_cited(whole, ids["rocket.txt"])


@check("a response in the background searches files")
def _() -> None:
    with a_library() as (store, ids):
        made = client.responses.create(**asking(store), background=True)

        def look() -> Any:
            now = client.responses.retrieve(made.id, include=RESULTS)
            return None if now.status in {"queued", "in_progress"} else now

        done = until(look, f"the end of {made.id}")
        same(done.status, "completed")
        check_cited(done, ids["rocket.txt"])


@check("a batch of responses searches files")
def _() -> None:
    with a_library() as (store, ids):
        lines = {"good": asking(store), "bad": asking("vs_none")}
        file = input_file(
            [{"custom_id": name, "method": "POST", "url": RESPONSES, "body": body} for name, body in lines.items()]
        )
        batch = ended(client.batches.create(input_file_id=file, endpoint=RESPONSES, completion_window="24h"))

        same((batch.status, batch.request_counts.completed, batch.request_counts.failed), ("completed", 1, 1))
        output, errors = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
        same((set(output), set(errors)), ({"good"}, {"bad"}))
        check_cited(output["good"]["response"]["body"], ids["rocket.txt"])
        refused = errors["bad"]["response"]
        same((refused["status_code"], refused["body"]["error"]["code"]), (404, "vector_store_not_found"))


@check("what is in no vector store is a NotFoundError")
def _() -> None:
    with a_store() as store:
        file = upload("cat.md", CAT)
        wanted = (404, "invalid_request_error", "not_found")
        for param, call in {
            "vector_store_id": lambda: stores.retrieve("vs_none"),
            "file_id": lambda: files.retrieve(file, vector_store_id=store),
            "batch_id": lambda: batches.retrieve("vsfb_none", vector_store_id=store),
        }.items():
            same(facts_of(raised(openai.NotFoundError, call)), (*wanted, param))
        for call in (
            lambda: stores.update("vs_none", name="x"),
            lambda: stores.delete("vs_none"),
            lambda: stores.search("vs_none", query="x"),
            lambda: files.list("vs_none"),
            lambda: files.create("vs_none", file_id=file),
            lambda: files.create(store, file_id="file-none"),
            lambda: files.content(file, vector_store_id=store),
            lambda: files.update(file, vector_store_id=store, attributes={}),
            lambda: files.delete(file, vector_store_id=store),
            lambda: batches.create(store, file_ids=[file, "file-none"]),
            lambda: batches.cancel("vsfb_none", vector_store_id=store),
            lambda: batches.list_files("vsfb_none", vector_store_id=store),
        ):
            raised(openai.NotFoundError, call)
        same(counts_of(stores.retrieve(store)), (0, 0, 0, 0, 0))


@check("many searches at once are answered")
def _() -> None:
    async def many() -> None:
        async with openai.AsyncOpenAI(api_key=FACTS["key"], base_url=f"{FACTS['url']}/v1") as eager:
            made = await eager.vector_stores.create(name=fresh("eager"))
            texts = [(f"n{n}.txt", f"number{n} is here".encode()) for n in range(6)]
            done = await eager.vector_stores.file_batches.upload_and_poll(made.id, files=texts)
            same(counts_of(done), (6, 0, 6, 0, 0))
            one = await eager.vector_stores.files.upload_and_poll(
                vector_store_id=made.id, file=("cat.md", CAT.encode())
            )
            same(one.status, "completed")
            asked: Any = {"extra_body": {"ranking_options": MOSTLY_WORDS}}
            found = await asyncio.gather(
                *(eager.vector_stores.search(made.id, query=f"number{n}", **asked) for n in range(6))
            )
            same([page.data[0].filename for page in found], [name for name, _ in texts])
            listed = [file.id async for file in eager.vector_stores.files.list(made.id, limit=3)]
            same(len(listed), 7)
            same((await eager.vector_stores.delete(made.id)).deleted, True)

    asyncio.run(many())

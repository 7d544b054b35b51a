"""Measure the console: its size, its first page, its pages over much data, and what open pages cost the server.

    python -m bench console [--jobs 1000000] [--files 10000] [--errors 50000] [--segments 1000000]
                            [--opens 10] [--clients 100] [--seconds 30]

    size      bytes of the built files: all of them, and those that the first page loads, after brotli
    first     seconds until the overview stands in Chromium, with an empty cache and a key: median and slowest
    pages     the requests that each page of `_PAGES` makes, repeated without the browser; the sum of their medians is
              the server time of the page
    feed      CPU of the web process while so many clients listen to the feed, in which nothing happens, and then while
              a job a second is created. They are of several projects, because streams are limited by project

Most of the data is written into SQL: jobs, files and segments of results are copies of a finished job's rows, and the
documents of the vector store are rows without vectors. The job with errors is run, by an engine that refuses its lines.

The console must be built (`make console`). Chromium is Debian's.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import aiohttp
import httpx2
from playwright.sync_api import Browser, Page
from rich.console import Console
from sqlalchemy import select, update

from api.pages.console_files import BUILD, is_built
from bench.deployment import LIVE, Deployment, chats, deployed, make_folder
from bench.fake_worker import REFUSED
from bench.load import columns_of, copy_history, insert_many
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger.tables import Job, Segment
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from tests.support.browsers import chromium
from tests.support.console import store_keys
from workers.engines.model_folders import MINILM

#: The pages whose server time is measured, with their addresses.
_PAGES: Final = {
    "overview": "",
    "job": "jobs/{job}",
    "jobs": "jobs",
    "model": "jobs?model=rare-model",
    "files": "files",
    "purpose": "files?purpose=evals",
    "store": "vector-stores/{store}",
    "errors": "jobs/{failed}",
    "results": "jobs/{failed}?tab=results&outcome=failed&code=context_length_exceeded",
    "audit": "audit?type=key.create",
}
_DAYS: Final = 30  # over which the segments are spread
_LINES: Final = {"web": "", "dispatcher": "", "cpu": "", "gpu": "python -m bench.fake_worker"}
_REPEATS: Final = 30
_OF_A_PROJECT: Final = 50  # clients: a project may have 64 streams
_AIMS: Final = {"size": 350_000, "first": 1.0, "page": 0.3, "feed": 0.1}


def main() -> None:
    options = _options()
    console = Console(width=120)
    if not is_built():
        raise SystemExit("the console is not built: make console")
    _measure_size(console)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        chats(folder / "in.jsonl", 10, "fake-model")
        environment = {"NIGHTMILL_VLLM_ENABLED": "false"}
        with deployed(folder, _LINES, (), environment) as inline:
            file_id = inline.upload(folder / "in.jsonl")
            ids = {"job": str(inline.run(file_id).job["id"]), "failed": _seed_errors(inline, folder, options.errors)}
            with chromium() as browser:
                _measure_first_page(console, inline, browser, options.opens)
                ids |= _seed(console, inline, options)
                for title, path in _PAGES.items():
                    _measure_page(console, inline, browser, title, path.format(**ids))
            # After Chromium: Playwright keeps a loop of its own in this thread.
            asyncio.run(_measure_feed(console, inline, file_id, options.clients, options.seconds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the size, the times and the load of the console")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs in SQL")
    parser.add_argument("--files", type=int, default=10_000, help="files, and documents of a vector store")
    parser.add_argument("--errors", type=int, default=50_000, help="lines of a job that fail")
    parser.add_argument("--segments", type=int, default=1_000_000, help=f"of results, over {_DAYS} days")
    parser.add_argument("--opens", type=int, default=10, help="times that the first page is opened")
    parser.add_argument("--clients", type=int, default=100, help="that listen to the feed")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which their cost is measured, twice")
    parser.add_argument("--folder", type=make_folder, help="where the data goes; default: the temporary folder")
    return parser.parse_args()


def _measure_size(console: Console) -> None:
    files = {path: path.stat().st_size for path in BUILD.rglob("*.br")}
    page = (BUILD / "index.html").read_text()
    first = sum(size for path, size in files.items() if path.name.removesuffix(".br") in page or path.parent == BUILD)
    total = sum(files.values())
    shown = f"{total / 1000:.0f} kB compressed ({_aim(total, 'size')}); {first / 1000:.0f} kB for the first page"
    console.print(f"size     {len(files)} files, {shown}")


def _measure_first_page(console: Console, inline: Deployment, browser: Browser, opens: int) -> None:
    seconds = [_opened(inline, browser) for _ in range(opens)]
    middle = statistics.median(seconds)
    console.print(f"first    {middle:.2f} s ({_aim(middle, 'first')}), at most {max(seconds):.2f} s of {opens}")


def _opened(inline: Deployment, browser: Browser) -> float:
    with _signed_in(inline, browser) as page:
        began = time.monotonic()
        page.goto(f"{inline.system.url}/console/", wait_until="commit")
        page.locator("main h1").wait_for()
        return time.monotonic() - began


@contextmanager
def _signed_in(inline: Deployment, browser: Browser) -> Iterator[Page]:
    """Yield a tab with the key and an empty cache."""
    context = browser.new_context()
    try:
        page = context.new_page()
        store_keys(page, inline.system.url, {"nightmill.key": inline.system.api_key})
        yield page
    finally:
        context.close()


def _measure_page(console: Console, inline: Deployment, browser: Browser, name: str, address: str) -> None:
    paths: dict[str, None] = {}
    with _signed_in(inline, browser) as page:
        page.on("request", lambda request: paths.setdefault(request.url.removeprefix(inline.system.url)))
        page.goto(f"{inline.system.url}/console/{address}")
        page.locator("main h1").wait_for()
        page.wait_for_timeout(2_000)  # for what it asks after its heading stands
    requests = [path for path in paths if path.startswith("/v1/") and not path.startswith("/v1/events")]
    if not requests:
        raise SystemExit(f"the page {name} asks nothing of the API: the build is older than the page")
    seconds = {path: _median(inline, path) for path in requests}
    total = sum(seconds.values())
    console.print(f"{name:<8} {total * 1000:.0f} ms in {len(requests)} requests ({_aim(total, 'page')})")
    for path, median in seconds.items():
        console.print(f"         {median * 1000:6.1f} ms  GET {path}")


def _median(inline: Deployment, path: str) -> float:
    headers = {"Authorization": f"Bearer {inline.system.api_key}"}
    seconds = []
    with httpx2.Client(base_url=inline.system.url, headers=headers, timeout=60) as client:
        for _ in range(_REPEATS):
            began = time.perf_counter()
            client.get(path).raise_for_status()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


# -- the data


def _seed(console: Console, inline: Deployment, options: argparse.Namespace) -> dict[str, str]:
    """Write the rows of a deployment that has been used for long. Return the id of its vector store."""
    store_id = inline.client.vector_stores.create(name="bench", extra_body={"embedding_model": MINILM}).id
    began = time.monotonic()
    with closing(Database(f"sqlite:///{inline.system.folder.path / 'nightmill.db'}", patience=60)) as db:
        _seed_jobs(db, options.jobs)
        _seed_segments(db, options.segments)
        _seed_files(db, options.files)
        _seed_documents(db, store_id, options.files)
    console.print(f"{options.jobs:,} jobs and {options.segments:,} segments after {time.monotonic() - began:.0f} s")
    return {"store": store_id}


def _seed_errors(inline: Deployment, folder: Path, count: int) -> str:
    """Run a job whose lines all fail; return its id."""
    chats(folder / "refused.jsonl", count, "fake-model", user=REFUSED)
    file_id = inline.upload(folder / "refused.jsonl")
    batch = inline.client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status in LIVE:
        threading.Event().wait(1)
        inline.system.check()
        batch = inline.client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.failed == count, batch
    return batch.id


def _seed_jobs(db: Database, count: int) -> None:
    """Copy a finished job; the oldest ten ask for another model."""
    copy_history(db, count)
    with db.write() as session:
        oldest = select(Job.id).order_by(Job.created_at).limit(10)
        session.execute(update(Job).where(Job.id.in_(oldest)).values(model="rare-model"))


def _seed_segments(db: Database, count: int) -> None:
    """Copy a segment of results as segments of the oldest job, spread over the last days."""
    with db.read() as session:
        columns = columns_of(session.scalars(select(Segment).limit(1)).one())
        columns["job_id"] = session.scalars(select(Job.id).order_by(Job.created_at).limit(1)).one()
    step = _DAYS * 86_400 / max(count, 1)
    insert_many(
        db, Segment, ({**columns, "n": n, "created_at": columns["created_at"] - n * step} for n in range(count))
    )


def _seed_files(db: Database, count: int) -> None:
    """Copy an uploaded file; the oldest ten are for evaluations."""
    with db.read() as session:
        columns = columns_of(session.scalars(select(File).where(File.purpose == "batch").limit(1)).one())
    rows = ({**columns, "id": new_id("file-"), "created_at": columns["created_at"] - n} for n in range(1, count + 1))
    insert_many(db, File, ({**row, "purpose": "evals"} if n >= count - 10 else row for n, row in enumerate(rows)))


def _seed_documents(db: Database, store_id: str, count: int) -> None:
    """Insert documents of a vector store, one in a hundred of which could not be read."""
    with db.read() as session:
        store = session.get_one(VectorStore, store_id)
    document = {
        "store_id": store_id,
        "project_id": store.project_id,
        "chunking": store.chunking,
        "job_id": "",
        "version": "",
    }
    failed = {"status": "failed", "error_code": "unsupported_file", "error_message": "The file cannot be read."}
    insert_many(
        db,
        VectorStoreFile,
        (
            {**document, "id": f"file-{n:08}", "filename": f"{n}.pdf", "line": n, "created_at": store.created_at - n}
            | ({"status": "completed", "error_code": None, "error_message": None} if n % 100 else failed)
            for n in range(count)
        ),
    )


# -- the feed


async def _measure_feed(console: Console, inline: Deployment, file_id: str, clients: int, seconds: float) -> None:
    keys = [inline.system.api_key]
    keys += [inline.project(f"clients-{n}").api_key for n in range(1, -(-clients // _OF_A_PROJECT))]
    stop = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        listeners = [
            group.create_task(_listen(session, inline.system.url, keys[n // _OF_A_PROJECT])) for n in range(clients)
        ]
        await asyncio.sleep(3)
        idle = await asyncio.to_thread(_share_of_core, inline, seconds)
        creator = threading.Thread(target=_create_jobs, args=(inline, file_id, stop))
        creator.start()
        busy = await asyncio.to_thread(_share_of_core, inline, seconds)
        stop.set()
        await asyncio.to_thread(creator.join)
        for listener in listeners:
            assert not listener.done(), "a client lost its stream"
            listener.cancel()
    console.print(
        f"feed     {clients} clients: {idle:.1%} of a core ({_aim(idle, 'feed')}); {busy:.1%} with a job a second"
    )


async def _listen(session: aiohttp.ClientSession, url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with session.get(f"{url}/v1/events?after=latest", headers=headers, timeout=timeout) as answer:
        answer.raise_for_status()
        async for _ in answer.content:
            pass


def _share_of_core(inline: Deployment, seconds: float) -> float:
    before, began = inline.cpu()["web"], time.monotonic()
    threading.Event().wait(seconds)
    return (inline.cpu()["web"] - before) / (time.monotonic() - began)


def _create_jobs(inline: Deployment, file_id: str, stop: asyncio.Event) -> None:
    pause = threading.Event()
    while not stop.is_set():
        inline.client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        pause.wait(1)


def _aim(value: float, name: str) -> str:
    limit = _AIMS[name]
    shown = {"size": f"{limit / 1000:.0f} kB", "feed": f"{limit:.0%}"}.get(name, f"{limit:g} s")
    return f"{'within' if value <= limit else 'beyond'} the aim of {shown}"


if __name__ == "__main__":
    main()

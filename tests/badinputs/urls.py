"""URLs of webhooks: nothing inside is reached, whether by an endpoint, by a batch's own webhook, or by a redirect.

Each URL is given to both. What is refused has a code; what is accepted, since a name answers what it likes, is called:
the endpoint by its test, the batch's webhook by its delivery. The canary counts who came.
"""

import itertools
import socket
from collections.abc import Iterator

from sqlalchemy import select

from jobs.webhooks.tables import Attempt, Delivery
from tests.badinputs.case import Case
from tests.badinputs.json_bodies import BATCH
from tests.badinputs.world import World, said
from tests.support.receiver import Receiver

AREA = "URLs"
REFUSED = "400 invalid_url / 400 invalid_url, 0 connections"
CALLED = "address not public / address not public, 0 connections"
_numbers = itertools.count()

#: Names whose addresses are inside.
NAMED = (
    "https://inside.example.com:{}/",
    "https://inside6.example.com:{}/",
    "https://mapped.example.com:{}/",
    "https://nat64.example.com:{}/",
    "https://mixed.example.com:{}/",
    "https://metadata.example.com/",
)
#: `{}` is the canary's port, which the guard lets pass here: only the address is in the way.
PAYLOADS = [
    *("https://127.0.0.1:{}/", "https://0:{}/", "https://0.0.0.0:{}/", "https://0x7f000001:{}/"),
    *("https://0x7f.0.0.1:{}/", "https://0177.0.0.1:{}/", "https://2130706433:{}/", "https://127.1:{}/"),
    *("https://127.0.1:{}/", "https://127.0.0.1.:{}/", "https://127.255.255.254:{}/", "https://017700000001:{}/"),
    *("https://[::]:{}/", "https://[::1]:{}/", "https://[0:0:0:0:0:0:0:1]:{}/", "https://[::ffff:127.0.0.1]:{}/"),
    *("https://[::ffff:7f00:1]:{}/", "https://[::127.0.0.1]:{}/", "https://[64:ff9b::7f00:1]:{}/"),
    *("https://[64:ff9b:1::7f00:1]:{}/", "https://[2002:7f00:1::]:{}/", "https://[2001:0:7f00:1::]:{}/"),
    *("https://[fe80::1]:{}/", "https://[fe80::1%25lo]:{}/", "https://[fd00::]:{}/", "https://[fec0::1]:{}/"),
    *("https://[ff02::1]:{}/", "https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://172.16.0.1/"),
    *("https://192.168.1.1/", "https://100.64.0.1/", "https://192.0.0.192/", "https://198.18.0.1/"),
    *("https://168.63.129.16/machine?comp=goalstate", "https://[::ffff:168.63.129.16]/"),
    *("https://224.0.0.1/", "https://255.255.255.255/", "https://localhost:{}/", "https://localhost.:{}/"),
    *("https://LOCALHOST:{}/", "https://a.localhost:{}/"),
    *("https://metadata.google.internal/", "https://printer.local/", "https://valkey:{}/"),
    *(
        "https://user@127.0.0.1:{}/",
        "https://good.example.com@127.0.0.1:{}/",
        "https://user:pass@inside.example.com:{}/",
    ),
    *("http://good#@127.0.0.1:{}", "https://good.example.com#@127.0.0.1:{}/", "https://127.0.0.1:{}#good.example.com"),
    *("https://good.example.com\\@127.0.0.1:{}/", "https://127.0.0.1:{}\\.good.example.com/"),
    *("https://127.0.0.1:{}\t/", "https://127.0.0.1:{}/\r\nHost: good.example.com", " https://127.0.0.1:{}/"),
    *(
        "https://127.0.0.1%00.good.example.com:{}/",
        "https://127.0.0.1%2f.good.example.com:{}/",
        "https://%31%32%37.0.0.1:{}/",
    ),
    *("https://\uff11\uff12\uff17.0.0.1:{}/", "https://127\u30020\u30020\u30021:{}/", "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{}/"),
    *("https://ex\u0430mple.com/", "https://localhos\u0074\u200b:{}/", "https://good.example.com.:{}/"),
    *("https://inside.example.com:22/", "https://inside.example.com:6379/", "https://inside.example.com:5432/"),
    *("https://inside.example.com:0/", "https://inside.example.com:65536/", "https://inside.example.com:80/"),
    *("http://127.0.0.1:{}/", "http://inside.example.com:{}/", "HTTP://127.0.0.1:{}/"),
    *("file:///etc/passwd", "file://127.0.0.1:{}/etc/passwd", "gopher://127.0.0.1:{}/_FLUSHALL", "ftp://127.0.0.1:{}/"),
    *(
        "dict://127.0.0.1:{}/",
        "jar:https://127.0.0.1:{}!/",
        "javascript:alert(1)",
        "data:text/plain,x",
        "unix:/run/x.sock",
    ),
    *("//127.0.0.1:{}/", "https:127.0.0.1:{}", "https:/127.0.0.1:{}/", "https:///127.0.0.1:{}/", "https://"),
    *("https://[::1:{}/", "https://[v1.x]:{}/", "https://[127.0.0.1]:{}/", "127.0.0.1:{}"),
    f"https://{socket.gethostname()}:{{}}/",
    *NAMED,
]
#: Names that are public, or nobody's, when they are checked, and inside when they are called.
SLY = {
    "a rebinding name": "rebind.example.com",
    "a name that rebinds to IPv6": "rebind6.example.com",
    "a name that rebinds in part": "rebind-mixed.example.com",
    "a name that is new, and inside": "late.example.com",
}


def offer(world: World, url: str, batch_url: str | None = None) -> str:
    """Give a URL to both, call what is accepted, and count the canary's visitors."""
    before = world.canary.connections
    url, batch_url = (text.replace("{}", str(world.canary.port)) for text in (url, batch_url or url))
    told = f"{_endpoint(world, url)} / {_batch(world, batch_url)}"
    return f"{told}, {world.canary.connections - before} connections"


def sly(world: World, name: str) -> str:
    """Give each of the two a name of its own, so that each begins at the first lookup."""
    first, second = (f"https://n{next(_numbers)}-at-{name}:{{}}/" for _ in range(2))
    return offer(world, first, second)


def redirected(world: World, status: int, to: str) -> str:
    """Redirect from a permitted receiver to the canary."""
    before = world.canary.connections
    with Receiver() as receiver:
        url = receiver.url(f"redirect?status={status}&to={to.replace('{}', str(world.canary.port))}")
        told = f"{_endpoint(world, url)} / {_batch(world, url)}"
        followed = len([one for one in receiver.requests if not one.path.startswith("/redirect?")])
    return f"{told}, {world.canary.connections - before + followed} connections"


def behaving(world: World, how: str) -> str:
    with Receiver() as receiver:
        return f"{_endpoint(world, receiver.url(how))} / {_batch(world, receiver.url(how))}"


def control(world: World) -> str:
    """Show that the same URL reaches the canary where private addresses are permitted; else the zeros prove nothing."""
    before = world.canary.connections
    offer(world, "http://127.0.0.1:{}/")
    for listener in world.canary.listeners:
        socket.create_connection(listener.getsockname()[:2], 5).close()
    wanted = 2 + len(world.canary.listeners)
    world.eventually(lambda: world.canary.connections - before >= wanted, "the canary is reached")
    return "reached by each"


def _endpoint(world: World, url: str) -> str:
    body = {"name": "n", "url": url, "event_types": ["batch.completed"]}
    made = world.client.post("/v1/webhook_endpoints", json=body)
    if made.status_code != 200:
        return said(made)
    path = f"/v1/webhook_endpoints/{made.json()['id']}"
    tried = world.client.post(f"{path}/test", json={"event_type": "batch.completed"})
    world.client.delete(path)
    if tried.status_code == 200:
        result = tried.json()
        return "delivered" if 200 <= result["status_code"] < 300 else f"status {result['status_code']}"
    return str(tried.json()["error"]["message"]).removeprefix("The receiver could not be reached: ").rstrip(".")


def _batch(world: World, url: str) -> str:
    """Create a batch that fails at once and notifies its webhook."""
    made = world.client.post("/v1/batches", json=BATCH | {"webhook": {"url": url}})
    if made.status_code != 200:
        return said(made)
    job_id = made.json()["id"]
    world.eventually(lambda: _outcome(world, job_id), f"the delivery of {job_id}")
    return _outcome(world, job_id) or ""


def _outcome(world: World, job_id: str) -> str | None:
    statement = select(Attempt.error, Attempt.status_code).join(Delivery, Delivery.id == Attempt.delivery_id)
    with world.db.read() as session:
        row = session.execute(statement.where(Delivery.job_id == job_id)).first()
    return None if row is None else row.error or "delivered"


def cases() -> Iterator[Case]:
    for url in PAYLOADS:
        yield Case(AREA, ascii(url)[1:-1], REFUSED, lambda world, url=url: offer(world, url))
    yield Case(AREA, "a URL of 3 KB", REFUSED_LENGTH, lambda world: offer(world, "https://example.com/" + "a" * 3000))
    for name, host in SLY.items():
        yield Case(AREA, name, CALLED, lambda world, host=host: sly(world, host), creates=True)
    yield Case(AREA, "control: no guard", "reached by each", control, creates=True, world="open", seconds=5)
    for status, to in itertools.product((301, 302, 307, 308), ("http://127.0.0.1:{}/", "http://[::1]:{}/")):
        yield Case(
            AREA,
            f"a redirect ({status}) to {to}",
            f"status {status} / status {status}, 0 connections",
            lambda world, status=status, to=to: redirected(world, status, to),
            creates=True,
            world="open",
        )
    yield Case(
        AREA,
        "a redirect to the metadata service",
        "status 302 / status 302, 0 connections",
        lambda world: redirected(world, 302, "http://169.254.169.254/latest/meta-data/"),
        creates=True,
        world="open",
    )
    for url in (
        "http://169.254.169.254/latest/meta-data/",
        "http://168.63.129.16/machine?comp=goalstate",
        "http://192.0.0.192/opc/v2/instance/",
        "http://[fe80::1]/",
        "http://224.0.0.1/",
        "file:///etc/passwd",
    ):
        name = f"where private addresses are permitted: {url}"
        yield Case(AREA, name, REFUSED, lambda world, url=url: offer(world, url), world="open")
    for how, expected in {
        "huge": "delivered",
        "bomb": "delivered",
        "trickle": "delivered",
        "hang": "timeout",
        "reset": "connection closed",
        "nonsense": "answer not http",
    }.items():
        yield Case(
            AREA,
            f"a receiver that answers: {how}",
            f"{expected} / {expected}",
            lambda world, how=how: behaving(world, how),
            creates=True,
            world="open",
        )


REFUSED_LENGTH = "400 string_above_max_length / 400 string_above_max_length, 0 connections"

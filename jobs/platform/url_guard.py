"""The guard of URLs that users give: no request of ours reaches what only we can reach.

    check_url ── parse once, strictly ──▶ resolve ──▶ every address public? ──▶ Target
    GuardedResolver ── the same test, inside the client's own resolution: what was checked is what is connected to

The second is what counts: a name may answer differently a second later. The first gives an early, clear answer.
One parser reads the URL and the request is built from its parts, so that no second parser can disagree.

A look-up cannot be interrupted. Those in flight are bounded, in all and for each project, so that a name server that
does not answer holds few threads: `check_url` refuses at once, the resolver waits for its turn.
"""

import asyncio
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from jobs.errors import InvalidRequest, LookupsBusy

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[Address]]

PORTS = frozenset({443, 8443})
_MAX_URL = 2048
_RESOLVE_SECONDS = 2.0
_TURN_SECONDS = 0.05  # between two looks whether a look-up may start
_PRINTABLE = re.compile(r"[!-~]+")
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "onion", "invalid")
#: IANA's special-purpose registry, IPv4; multicast and reserved included.
_NOT_PUBLIC_4 = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
        *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    )
]
#: IPv6 is public in 2000::/3 only, so v4-mapped, NAT64 and ULA are out; within it not Teredo, 6to4 and documentation.
_GLOBAL_6 = ip_network("2000::/3")
_NOT_PUBLIC_6 = [
    ip_network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
]
#: Of clouds, where they are not link-local: Amazon's, Google's, Alibaba's, Azure's (in public space), Oracle's.
_METADATA = [
    ip_network(text)
    for text in ("fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")
]
#: IPv6 whose last 32 bits are an IPv4 address: mapped, compatible, translated, NAT64 and NAT64 within a site.
_LAST_32 = [
    ip_network(text) for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
]


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts. `addresses` is empty when the name gave no answer: the attempt decides then."""

    scheme: str
    host: str
    port: int
    path: str
    query: str
    addresses: tuple[Address, ...] = ()

    def url(self) -> URL:
        """Return the URL for the client, made from these parts."""
        return URL.build(
            scheme=self.scheme,
            host=self.host,
            port=self.port,
            path=self.path,
            query_string=self.query,
            encoded=True,
        )


class Lookups:
    """Look-ups of names in flight: at most `most` in all, and `each` for one holder."""

    def __init__(self, limit: int, each: int) -> None:
        self._limit, self._each = limit, each
        self._lock = threading.Lock()
        self._held = Counter[str]()

    def start(self, resolve: Resolve, host: str, port: int, holder: str) -> "Future[Sequence[Address]] | None":
        """Start a look-up in a daemon thread, which holds up no process's exit; None when too many are in flight."""
        with self._lock:
            if self._held.total() >= self._limit or self._held[holder] >= self._each:
                return None
            self._held[holder] += 1
        future: Future[Sequence[Address]] = Future()

        def work() -> None:
            try:
                _resolve_into(future, resolve, host, port)
            finally:
                self._release(holder)

        try:
            threading.Thread(target=work, name="resolve", daemon=True).start()
        except RuntimeError:  # the process may start no more threads now
            self._release(holder)
            raise
        return future

    def _release(self, holder: str) -> None:
        with self._lock:
            self._held[holder] -= 1
            self._held += Counter()  # forgets holders without any


#: Of checks, each of which holds a thread of the API for up to `_RESOLVE_SECONDS`, and one for each of a project's
#: threads; of attempts, which hold none.
CHECKS = Lookups(30, 10)
ATTEMPTS = Lookups(256, 32)
_holder: ContextVar[str] = ContextVar("holder", default="")


@contextmanager
def on_behalf_of(project_id: str) -> Iterator[None]:
    """Count the look-ups within as this project's; without it they count for each name."""
    token = _holder.set(project_id)
    try:
        yield
    finally:
        _holder.reset(token)


def check_url(
    url: str,
    *,
    allow_private: bool,
    project_id: str = "",
    resolve: Resolve | None = None,
    lookups: Lookups = CHECKS,
    patience: float = _RESOLVE_SECONDS,
) -> Target:
    """Return the parts of a URL that may be called. A name that does not answer within `patience` seconds may be.

    Raises InvalidRequest for any other.

    Public addresses, https and the ports of PORTS only; with `allow_private` also private ones, http and any port.
    Raises LookupsBusy when too many look-ups are in flight, in all or for this project.
    """
    target = parse(url, allow_private=allow_private)
    if target.addresses:
        return target
    future = lookups.start(resolve or system_resolve, target.host, target.port, project_id)
    if future is None:
        raise LookupsBusy
    addresses = _answers(future, patience)
    return replace(target, addresses=_check_permitted(addresses, allow_private=allow_private))


def parse(url: str, *, allow_private: bool) -> Target:
    """Check all but the addresses: the shape, the scheme, the port, and an address where the host is one."""
    if len(url) > _MAX_URL or not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise _invalid_url(f"The URL must be at most {_MAX_URL} printable ASCII characters without backslashes.")
    parts = _split(url)
    if parts.username is not None or parts.password is not None or "#" in url:
        raise _invalid_url("The URL must not hold a user name, a password or a fragment.")
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not allow_private):
        raise _invalid_url("The URL must start with https://.")
    port = parts.port if parts.port is not None else {"https": 443, "http": 80}[parts.scheme]
    if port == 0 or (port not in PORTS and not allow_private):
        raise _invalid_url(f"The URL's port must be one of {', '.join(map(str, sorted(PORTS)))}.")
    host, addresses = _host(parts, allow_private=allow_private)
    allowed = _check_permitted(addresses, allow_private=allow_private)
    return Target(parts.scheme, host, port, parts.path or "/", parts.query, allowed)


def permitted(address: Address, *, allow_private: bool) -> bool:
    """Return whether a request may go to this address. Link-local, other metadata services and multicast: never."""
    if any(_is_forbidden(address) for address in (address, *_inner_addresses(address))):
        return False
    return allow_private or (_public(address) and not _is_own(address))


def system_resolve(host: str, port: int) -> Sequence[Address]:
    """Return every address of a name, as the system answers. Raises OSError."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(info[4][0]).partition("%")[0]) for info in infos))


class AddressRefused(OSError):
    """The name leads, at least in part, to an address that is not public."""


class GuardedResolver(AbstractResolver):
    """The resolver of a client: answers with permitted addresses, or refuses the name when any is not."""

    def __init__(self, *, allow_private: bool, resolve: Resolve | None = None, lookups: Lookups = ATTEMPTS) -> None:
        self._lookups = lookups
        self._allow_private = allow_private
        self._resolve = resolve or system_resolve

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002
    ) -> list[ResolveResult]:
        holder = _holder.get() or host
        # waits within the time that the client has to connect
        while (future := self._lookups.start(self._resolve, host, port, holder)) is None:  # noqa: ASYNC110 (threads end)
            await asyncio.sleep(_TURN_SECONDS)
        addresses = await asyncio.wrap_future(future)
        if not addresses:
            raise OSError("no address")
        if not all(permitted(address, allow_private=self._allow_private) for address in addresses):
            raise AddressRefused("address not public")
        return [_result(host, port, address) for address in addresses]

    async def close(self) -> None:
        """Close nothing: the resolver has no resources."""


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise _invalid_url("The URL is not valid.") from error
    return parts


def _host(parts: SplitResult, *, allow_private: bool) -> tuple[str, tuple[Address, ...]]:
    """Return the host in lower case, and its address when it is one. Odd spellings of addresses are not names."""
    host = parts.hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is not None and "%" not in host:
        return str(address), (address,)
    if not _NAME.fullmatch(host) or "[" in parts.netloc:
        raise _invalid_url("The URL's host must be a domain name in ASCII or a plain IP address.")
    if not allow_private and ("." not in host or any(_is_subdomain(host, name) for name in _LOCAL_NAMES)):
        raise _invalid_url("The URL's host must be a public domain name.")
    return host, ()


def _is_subdomain(host: str, name: str) -> bool:
    return host == name or host.endswith(f".{name}")


def _answers(future: "Future[Sequence[Address]]", patience: float) -> Sequence[Address]:
    try:
        return future.result(patience)
    except (OSError, TimeoutError):
        return ()


def _resolve_into(future: "Future[Sequence[Address]]", resolve: Resolve, host: str, port: int) -> None:
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError) as error:
        if future.set_running_or_notify_cancel():
            future.set_exception(OSError(str(error)))
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(addresses)


def _is_forbidden(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or any(address in network for network in _METADATA)


def _inner_addresses(address: Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that a packet to this one may be handed on to."""
    if isinstance(address, IPv4Address):
        return []
    given = [address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _LAST_32):
        given.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [address for address in given if address is not None]


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _GLOBAL_6 and not any(address in network for network in _NOT_PUBLIC_6)


def _is_own(address: Address) -> bool:
    """Return whether an interface of this host has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _result(host: str, port: int, address: Address) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address),
        port=port,
        family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
        proto=0,
        flags=socket.AI_NUMERICHOST,
    )


def _check_permitted(addresses: Sequence[Address], *, allow_private: bool) -> tuple[Address, ...]:
    if not all(permitted(address, allow_private=allow_private) for address in addresses):
        raise _invalid_url("The URL's host does not have a public address.")
    return tuple(addresses)


def _invalid_url(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="url", code="invalid_url")

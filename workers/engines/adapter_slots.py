"""Load adapters into an engine while it runs nothing else, and unload the one that was least recently used.

    request ── its adapter is loaded ──────────────────────────────▶ runs with the others
       └── is not ──▶ new requests wait ──▶ running ones end ──▶ unload, load, check ──▶ all go on

An engine that loads an adapter beside running requests may answer one of them with the wrong weights.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from workers.engines.port import Adapter, AdapterRefused, EngineDead

_REFUSALS_KEPT: Final = 256

T = TypeVar("T")
Change = Callable[[Adapter], Awaitable[None]]


async def _nothing(_adapter: Adapter) -> None:
    """Do nothing: an engine without slots loads no adapter."""


class AdapterSlots:
    """The adapters of one running engine, at most `limit`. For one event loop.

    `load` makes an adapter ready to be asked, and raises AdapterRefused for one that never will be; `unload` removes an
    adapter. Without arguments these are the slots of an engine that takes no adapters.
    """

    def __init__(self, limit: int = 0, load: Change = _nothing, unload: Change = _nothing) -> None:
        self._limit, self._load, self._unload = limit, load, unload
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()  # the least recently used first
        self._wanted: dict[str, Adapter] = {}  # loaded together, as soon as nothing runs
        self._refused: OrderedDict[str, tuple[Adapter, AdapterRefused]] = OrderedDict()
        self._exclusive_task: asyncio.Task[Any] | None = None  # what runs, or will, with nothing beside it
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Return the names of the adapters that are loaded, the least recently used first."""
        return tuple(self._loaded)

    @asynccontextmanager
    async def running(self, adapter: Adapter | None) -> AsyncIterator[None]:
        """Count a request as running, once its adapter is loaded.

        Raises:
            AdapterRefused: The engine does not take this adapter.
        """
        await self._admit(adapter)
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def run_exclusively(self, adapter: Adapter | None, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, which runs with nothing beside it once the adapter is loaded.

        Raises:
            AdapterRefused: The engine does not take this adapter.
        """
        await self._admit(adapter)
        task = asyncio.create_task(self._run_exclusively(work))
        self._exclusive_task = task
        return await asyncio.shield(task)

    async def _admit(self, adapter: Adapter | None) -> None:
        while self._exclusive_task is not None or (adapter is not None and adapter.name not in self._loaded):
            if adapter is not None and adapter.name not in self._loaded:
                self._check(adapter)
                self._wanted[adapter.name] = adapter
            task = self._exclusive_task = self._exclusive_task or asyncio.create_task(
                self._run_exclusively(self._load_requested)
            )
            await asyncio.wait((task,))  # a client that leaves does not stop what others wait for
            if isinstance(error := task.exception(), EngineDead):
                raise error
        if adapter is not None:
            self._loaded.move_to_end(adapter.name)

    async def _run_exclusively(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._idle.wait()
            return await work()
        finally:
            self._exclusive_task = None

    def _check(self, adapter: Adapter) -> None:
        if not self._limit:
            raise AdapterRefused(
                "This engine takes no adapters: its model needs `enable_lora` and `max_loras` of 2 or more."
            )
        known, refused = self._refused.get(adapter.name, (None, None))
        if refused is not None and known == adapter:  # else an operator has decided since
            raise AdapterRefused(str(refused), failed_probe=refused.failed_probe)

    async def _load_requested(self) -> None:
        # one that was loading when a request wanted it is loaded by now: an engine refuses it a second time
        adapters = [adapter for name, adapter in self._wanted.items() if name not in self._loaded][: self._limit]
        self._wanted.clear()  # a request that still waits says again what it wants
        for adapter in adapters:
            if len(self._loaded) >= self._limit:
                _, unused = self._loaded.popitem(last=False)
                await self._unload(unused)
            await self._load_one(adapter)

    async def _load_one(self, adapter: Adapter) -> None:
        try:
            await self._load(adapter)
        except AdapterRefused as error:
            self._refused[adapter.name] = adapter, error
            if len(self._refused) > _REFUSALS_KEPT:
                self._refused.popitem(last=False)
        else:
            self._loaded[adapter.name] = adapter

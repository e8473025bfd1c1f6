"""What a server's adapters take before it starts: computed, and refused where it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from genai_core.container.adapters import AdapterIndex
from genai_core.names import Backend
from genai_runtime.container.container import Container
from genai_runtime.cpu.bank import bank_bytes
from genai_runtime.executor.adapter_weights import AdapterShape, NoRoom
from genai_runtime.executor.executor import AdapterHost, Executor
from genai_serving.adapters.cache import AdapterCache, AdapterLoader
from genai_serving.adapters.sources import AdapterSources
from genai_serving.scheduler import mebibytes

__all__ = ["AdapterRoom", "HeldAdapters", "open_with_adapters", "plan_room"]

_BLOCK = 16
_ROOM = 64
"""Ranks of a pass where nobody says anything: as many, or what the largest needs."""

_LATER = 1 << 30
"""Bytes for adapters that may come, where nobody says anything, or a quarter of what is left."""


@dataclass(frozen=True)
class AdapterRoom:
    """What adapters take.

    Attributes:
        columns: Ranks that a pass holds.
        bank_bytes: Of these columns at all linears that may be adapted.
        own_bytes: Of the adapters that the server is started with: they stay in memory.
        most_bytes: Of all of it together, ever.
    """

    columns: int
    bank_bytes: int
    own_bytes: int
    most_bytes: int

    @property
    def cache_bytes(self) -> int:
        """For adapters outside the columns."""
        return self.most_bytes - self.bank_bytes


def plan_room(
    index: AdapterIndex,
    shapes: Mapping[str, AdapterShape],
    branches: Sequence[AdapterShape],
    *,
    columns: int | None,
    cache_mib: int | None,
    coming: bool,
    left: int,
) -> AdapterRoom:
    """What a server needs for its adapters.

    Args:
        index: Those that it serves, and their use cases.
        shapes: By name.
        branches: All whose linears may be adapted.
        columns: Ranks of a pass; None = 64, or fewer where no more may come, or what the largest
            adapter or use case has.
        cache_mib: All memory of adapters; None = what they need, and 1 GiB or a quarter of what is
            left where others may come.
        coming: Others may come.
        left: Bytes that this process may still take.

    Raises:
        NoRoom: One has more ranks than a pass, or memory does not suffice; with the numbers.
    """
    largest, whose = max(
        (
            (sum(shapes[name].rank for name in names), what)
            for what, names in (
                *((name, (name,)) for name in shapes),
                *((n, [worn.name for worn in e.adapters]) for n, e in index.use_cases.items()),
            )
        ),
        default=(0, ""),
    )
    if columns is not None and columns < largest:
        raise NoRoom(
            f"{whose} has rank {largest}, and a pass is to hold {columns}",
            where="--max-adapter-rank",
            remedy="raise it, or serve without that adapter",
        )
    if columns is None:
        wanted = _ROOM if coming else min(_ROOM, sum(shape.rank for shape in shapes.values()))
        columns = max(largest, wanted)
    columns = -(-columns // _BLOCK) * _BLOCK
    bank = bank_bytes(branches, columns)
    own = sum(shape.bytes for shape in shapes.values())
    later = min(_LATER, max(0, left - bank - own) // 4) if coming else 0
    most = bank + own + later if cache_mib is None else cache_mib << 20
    linears = len({linear for shape in branches for linear in shape.sizes})
    told = (
        f"{columns} ranks at {linears} linears take {mebibytes(bank)} MiB, and {len(shapes)} "
        f"adapters {mebibytes(own)} MiB; "
    )
    remedy = "lower --max-adapter-rank, serve fewer adapters, or give it more"
    if bank + own > most:
        raise NoRoom(f"{told}it is {cache_mib} MiB", where="--adapter-cache-mib", remedy=remedy)
    if bank + own > left:
        raise NoRoom(
            f"{told}the memory limit, less 15 % and what is held already, leaves "
            f"{mebibytes(max(left, 0))} MiB",
            where="adapters",
            remedy=remedy,
        )
    return AdapterRoom(columns, bank, own, most)


class HeldAdapters:
    """The adapters that a server is started with: read, and where they are laid in.

    Args:
        host: The executor, without adapters.
        room: What they take.
        sources: By name; read at once, and kept.
    """

    def __init__(
        self, host: AdapterHost, room: AdapterRoom, sources: Mapping[str, AdapterLoader]
    ) -> None:
        self._host = host
        self._laid: list[str] = []
        self.room = room
        self.cache = AdapterCache(room.cache_bytes)
        self.names = tuple(sources)
        for name, source in sources.items():
            self.cache.add(name, source, pinned=True)
            self.cache.weights(name)

    @property
    def later(self) -> int:
        """Bytes that adapters may come to take beside those that are there."""
        return self.room.cache_bytes - self.cache.bytes

    def wear(self, names: Sequence[str]) -> None:
        """Lay in these instead of others, side by side; before an engine has the executor."""
        for name in self._laid:
            self._host.unload_adapter(name)
        self._laid = []
        self._lay_in(names)

    def lay_in_first(self) -> None:
        """Lay in as many as there is room for, from the front; as `wear`."""
        self.wear(())
        for name in self.names:
            try:
                self._lay_in([name])
            except NoRoom:
                return

    def _lay_in(self, names: Sequence[str]) -> None:
        self._host.reserve_adapters({name: self.cache.source(name).shape.rank for name in names})
        for name in names:
            self._host.fill_adapter(name, self.cache.weights(name))
            self._laid.append(name)


def open_with_adapters(
    opened: Container,
    index: AdapterIndex,
    *,
    columns: int | None,
    cache_mib: int | None,
    coming: bool,
    left: int,
    open_executor: Callable[..., Executor],
) -> tuple[Executor, HeldAdapters | None]:
    """The executor of a container, and the adapters that are served; none where none can be.

    Args:
        opened: The container.
        index: Its adapters that are served, and their use cases.
        columns: As the further ones see `plan_room`.
        cache_mib: See there.
        coming: See there.
        left: See there.
        open_executor: `container.backend.open_executor` with all that concerns no adapter.

    Raises:
        BadInput: As `plan_room` and `open_executor`.
    """
    chosen = index.adapters
    if opened.manifest.target.backend is not Backend.CPU or not chosen:
        return open_executor(adapters=[]), None
    sources = AdapterSources(opened, None)
    own = {name: sources.find(name).source() for name in chosen}
    branches = [source.shape for source in own.values()]
    if coming:  # those that were not chosen may come by name
        rest = [name for name in opened.adapters().adapters if name not in chosen]
        branches += [sources.find(name).source().shape for name in rest]
    room = plan_room(
        index,
        {name: source.shape for name, source in own.items()},
        branches,
        columns=columns,
        cache_mib=cache_mib,
        coming=coming,
        left=left,
    )
    executor = open_executor(adapters=[], adapter_columns=room.columns, branches=branches)
    assert isinstance(executor, AdapterHost)
    return executor, HeldAdapters(executor, room, own)

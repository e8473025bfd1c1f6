"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genai_runtime.speculation.config import SpeculativeConfig
from genai_serving.api.api_keys import ApiKeys

__all__ = ["AdminOptions", "Options"]


@dataclass(frozen=True)
class AdminOptions:
    """Of the port on which adapters come and go.

    Attributes:
        port: 0 = any free one.
        tokens: Every request on it must bring one of them.
        folder: Below which containers lie that adapters may come from; None = the served one's.
        declared: File with the adapters that are served from the start; where it names one, the
            container may carry none, and one that cannot be had ends nothing.
        fetch: Socket of the program that fetches adapters of later revisions of the same base;
            None = none is followed.
    """

    port: int
    tokens: ApiKeys
    folder: Path | None = None
    declared: Path | None = None
    fetch: Path | None = None


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        container: Its folder.
        cache: A folder of this user's own for prepared graphs and digests.
        host: Where it listens.
        port: 0 = any free one.
        api_keys: See `api.app.application`.
        model_name: What requests call it; empty = the container's folder.
        context_length: Tokens of prompt and answer; None = the container's.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        sequences: That run at once.
        waiting: That may wait.
        tokens: Of a pass.
        cache_mib: Keys and values of all sequences; None = what the memory allows.
        prefix_mib: What of it may keep beginnings of prompts; None = all that nobody uses.
        prefix_folder: Where they outlive the server; None = nowhere.
        prefix_folder_mib: Of all files there.
        exact: See `api.model.ServedModel`.
        system_prompts: Texts whose keys and values are kept from the start.
        request_seconds: That an answer may take; 0 = for ever.
        drain_seconds: That running answers get when the server ends.
        drain_delay_seconds: Before that, for which it still listens; see `draining`.
        keys_folder: Further keys, see `api.keys`.
        adapters: Those of the container that are served; empty = all.
        adapter_rank: Ranks that a pass holds; 0 = no adapters; None = see `adapters.start`.
        adapter_mib: Memory of adapters, those of a pass included; None = see there.
        revision: That the container must be; empty = any.
        golden: Its recorded prompts must be answered as recorded before the first request.
        admin: How adapters come and go while it runs; None = they do not.
        speculation: How tokens are guessed; None = they are not.
        tls: Folder of the certificate, see `tls`; None = plain HTTP.
    """

    container: Path
    cache: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    model_name: str = ""
    context_length: int | None = None
    threads: int = 0
    sequences: int = 8
    waiting: int = 256
    tokens: int = 128
    cache_mib: int | None = None
    prefix_mib: int | None = None
    prefix_folder: Path | None = None
    prefix_folder_mib: int = 4096
    exact: bool = True
    system_prompts: tuple[str, ...] = ()
    request_seconds: float = 0.0
    drain_seconds: float = 30.0
    drain_delay_seconds: float = 0.0
    keys_folder: Path | None = None
    adapters: tuple[str, ...] = ()
    adapter_rank: int | None = None
    adapter_mib: int | None = None
    revision: str = ""
    golden: bool = False
    admin: AdminOptions | None = None
    speculation: SpeculativeConfig | None = None
    tls: Path | None = None

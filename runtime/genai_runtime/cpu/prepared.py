"""Packed models that were optimized for this machine once, and are mapped from then on.

ONNX Runtime optimizes the largest packed model and writes it with its weights in the kernels' own
layout. Smaller ones are the same graph with fewer rows, and those without trees have two inputs of
attention less, so all share that one data file: one mapping, whatever is opened. A start then costs
a fraction of a second and no memory for weights beyond the mapped pages.

    <cache>/<key>/weights.data, rows1.onnx ... rows8.onnx, trees1.onnx ... trees8.onnx,
    <cache>/<key>/prepared.json    the digest of each file; without it there is nothing here

The key covers the container, ONNX Runtime's version, the processor's features and this layout.
A folder appears as a whole, by a rename; one whose files are not those of its `prepared.json` is a
miss and made again. It is this user's own, like every cache: never shared between users.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, ValidationError

from genai_core.canonical import digest_file, digest_json
from genai_runtime.cpu.branches import branched
from genai_runtime.cpu.fusing import fused
from genai_runtime.cpu.model import CpuModel
from genai_runtime.cpu.packing import narrowed, packed, without_trees
from genai_runtime.cpu.sessions import open_session, session_options

SIZES = (1, 2, 4, 8)
"""Rows of the graphs."""

KEPT = 4
"""Entries of a cache; the one that was not used for longest goes first."""

_FORMAT = 1
_BRANCHES = 2
"""The form of branches for adapters."""

_PREFIX = 1
"""The form of a trained prefix's inputs."""

_PICTURES = 1
"""The form of the inputs for embeddings in tokens' places."""

_DATA_FILE = "weights.data"
_INDEX_FILE = "prepared.json"
_PART = ".part-"

DigestOf = Callable[[Path], str]


class _Index(BaseModel):
    """prepared.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]
    """Name -> SHA-256."""


class PreparedSessions:
    """Sessions of the models in a prepared folder.

    Args:
        folder: As `prepare` returned it.
        threads: 0 = as many as there are cores.
        exact: As it was prepared.
    """

    def __init__(self, folder: Path, *, threads: int, exact: bool) -> None:
        self._folder = folder
        self._threads = threads
        self._exact = exact

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows, ascending."""
        return SIZES

    def session(self, rows: int, *, trees: bool) -> Any:
        """The session of so many rows."""
        path = self._folder / _file_name(rows, trees=trees)
        options = session_options(self._threads, exact=self._exact)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return open_session(str(path), options, where=path)


def prepare(
    model: CpuModel,
    cache: Path,
    *,
    identity: str,
    features: frozenset[str],
    exact: bool,
    linears: Sequence[str] = (),
    parts: int = 1,
    prefix: bool = False,
    pictures: bool = False,
    digest_of: DigestOf = digest_file,
) -> Path:
    """The prepared folder of a model, from the cache where it is there and whole.

    Args:
        model: The container's.
        cache: Holds prepared folders; made where absent.
        identity: Of the container: its revision or base.
        features: Of the processor.
        exact: See `sessions.session_options`.
        linears: Those that get branches for adapters.
        parts: Of their ranks; see `branches`.
        prefix: Trees may see a trained prefix.
        pictures: Embeddings may stand in tokens' places.
        digest_of: How files are compared with prepared.json. `FileCache.digest` reads gigabytes
            once and not again while they do not change.

    Raises:
        BadModel: ONNX Runtime cannot load the model.
        OSError: The cache cannot be written.
    """
    branches = {"linears": list(linears), "branches": _BRANCHES, "parts": parts}
    key = digest_json(
        {
            "format": _FORMAT,
            "identity": identity,
            "onnxruntime": ort.__version__,
            "features": sorted(features),
            "exact": exact,
            **(branches if linears else {}),
            **({"prefix": _PREFIX} if prefix else {}),
            **({"pictures": _PICTURES} if pictures else {}),
        }
    )
    folder = cache / key[:32]
    if _whole(folder, digest_of):
        os.utime(folder)
        return folder
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=cache))
    try:
        adapted = branched(model.proto, linears, parts=parts)
        _write(model, adapted, part, exact=exact, prefix=prefix, pictures=pictures)
        _publish(part, folder, digest_of)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _forget_others(cache, folder)
    return folder


def _write(
    model: CpuModel,
    adapted: onnx.ModelProto,
    out: Path,
    *,
    exact: bool,
    prefix: bool,
    pictures: bool,
) -> None:
    work = out / "work"
    work.mkdir()
    source = model.path.parent
    joined = fused(adapted, source, work)
    whole = packed(joined, SIZES[-1], trees=True, prefix=prefix, pictures=pictures)
    for name in {_location(tensor) for tensor in whole.graph.initializer} - {""}:
        if not (work / name).exists():
            _link(source / name, work / name)
    largest = out / _file_name(SIZES[-1], trees=True)
    (work / "packed.onnx").write_bytes(whole.SerializeToString())
    options = session_options(1, exact=exact)
    options.optimized_model_filepath = str(largest)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", _DATA_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    open_session(str(work / "packed.onnx"), options, where=model.path)
    shutil.rmtree(work)
    optimized = onnx.load(str(largest), load_external_data=False)  # noqa: TID251 - no weights inside
    for rows in SIZES:
        smaller = narrowed(optimized, rows)
        for trees, made in ((True, smaller), (False, without_trees(smaller))):
            (out / _file_name(rows, trees=trees)).write_bytes(made.SerializeToString())
    digests = {path.name: digest_file(path) for path in sorted(out.iterdir())}
    (out / _INDEX_FILE).write_text(_Index(files=digests).model_dump_json(), encoding="utf-8")


def _publish(part: Path, folder: Path, digest_of: DigestOf) -> None:
    """Put a folder in its place; another start's is as good, a broken one goes."""
    try:
        part.rename(folder)
    except OSError:
        if _whole(folder, digest_of):
            return
        aside = Path(tempfile.mkdtemp(prefix=_PART, dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside / "broken")
        shutil.rmtree(aside, ignore_errors=True)
        part.rename(folder)


def _whole(folder: Path, digest_of: DigestOf) -> bool:
    """Whether a folder holds what its index says."""
    try:
        index = _Index.model_validate_json((folder / _INDEX_FILE).read_bytes())
        expected = {_DATA_FILE, *(_file_name(r, trees=t) for r in SIZES for t in (True, False))}
        return set(index.files) >= expected and all(
            digest_of(folder / name) == digest for name, digest in index.files.items()
        )
    except (OSError, ValidationError):
        return False


def _forget_others(cache: Path, folder: Path) -> None:
    """Remove the entries beyond KEPT. Who has one mapped keeps it until the end."""
    with contextlib.suppress(OSError):
        entries = [path for path in cache.iterdir() if (path / _INDEX_FILE).is_file()]
        entries.sort(key=lambda path: (path == folder, path.stat().st_mtime), reverse=True)
        for path in entries[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def _file_name(rows: int, *, trees: bool) -> str:
    return f"{'trees' if trees else 'rows'}{rows}.onnx"


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _link(source: Path, target: Path) -> None:
    """The file beside the model: ONNX Runtime follows no symbolic link out of a model's folder."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or not this user's file
        shutil.copyfile(source, target)

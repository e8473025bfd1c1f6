"""A model behind an address, brought to this machine.

Stages on a laptop read the model from disk, so a folder in a bucket is mirrored once into the
user's cache, and an archive is downloaded and unpacked there; later builds fetch only what has
changed, which the server's tags tell. Keys are made of content, so a model built from a mirror,
from a local folder or in a cluster has the same ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from genai_core.canonical import digest_json
from genai_core.errors import BadModel, InvalidSpec, SourceChanging
from genai_core.files.paths import check_relative_path
from genai_core.kinds.build import BuildSpec
from genai_core.network.download import download
from genai_core.network.download_rules import Rules
from genai_core.sources.archive import unpack_archive
from genai_core.sources.build_sources import sources_of
from genai_core.sources.source_address import is_archive, is_volume, parse_https
from genai_core.store.address import is_bucket
from genai_core.wire import Variable

if TYPE_CHECKING:
    from genai_core.store.location import SourceFolder

__all__ = ["bring_folder", "bring_source", "token_of"]

_INDEX = "index.json"


def bring_source(spec: BuildSpec, cache: Path, *, named: Iterable[str] = ()) -> BuildSpec:
    """The spec with a folder of this machine as its source.

    Args:
        spec: As written; returned as it is where its source is a folder.
        cache: Folder that mirrors lie in.
        named: See `bucket_access`.

    Raises:
        InvalidSpec: The address cannot be read, is a cluster's volume, or boto3 is not installed.
        GenAIError: The bucket or archive cannot be read, or there is no room.
    """
    files = bring_folder(
        spec.model.source,
        cache,
        where="spec.model.source",
        token=token_of(spec.model.source, spec),
        named=named,
    )
    if files is None:
        return spec
    model = spec.model.model_copy(update={"source": str(files)})
    return spec.model_copy(update={"model": model})


def token_of(address: str, spec: BuildSpec) -> str | None:
    """The user's token (GENAI_SOURCE_TOKEN), for sources on the host of the first https one.

    A build's sources may be several people's: each host would get the token of another.
    """
    hosts = [_host(source.address) for source in sources_of(spec)]
    host = _host(address)
    if not host or host != next(filter(None, hosts), ""):
        return None
    return os.environ.get(Variable.SOURCE_TOKEN) or None


def _host(address: str) -> str:
    return urlsplit(address).netloc if is_archive(address) else ""


def bring_folder(
    address: str,
    cache: Path,
    *,
    where: str,
    token: str | None = None,
    named: Iterable[str] = (),
) -> Path | None:
    """What an address holds, as a folder of this machine; None where it is a folder already.

    Args:
        address: Of a source.
        cache: Folder that mirrors lie in.
        where: The field that it stands in, for messages.
        token: Is sent to the host of an archive.
        named: See `bucket_access`.

    Raises:
        InvalidSpec: The address cannot be read, is a cluster's volume, or boto3 is not installed.
        GenAIError: The bucket or archive cannot be read, or there is no room.
    """
    if is_volume(address):
        raise InvalidSpec(
            f"{address} is a volume of a cluster",
            where=where,
            remedy="build it there with: genai build --remote, or name the folder that it holds",
        )
    bring: Callable[[str, Path], Path]
    if is_bucket(address):
        bring = partial(_mirror, where=where, named=named)
    elif is_archive(address):
        bring = partial(_unpacked, token=token)
    else:
        return None
    root = cache / "sources" / digest_json({"source": address})[:32]
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        return bring(address, root)


def _unpacked(address: str, root: Path, *, token: str | None) -> Path:
    """Make `root/<digest of the archive>` what the archive holds."""
    archive = parse_https(address)
    known = _read_index(root / _INDEX)
    here = _folder_of(root, known)
    if here is not None and archive.sha256 is not None:
        return here
    draft, [tag] = root / "draft", known.get("tag") or [""]
    # Who names the address is who runs this: it may lead into one's own network.
    found = download(
        archive.url,
        draft,
        rules=Rules(checks_addresses=False),
        token=token,
        tag=str(tag) if here is not None else "",
    )
    if found is None:
        assert here is not None
        return here
    if archive.sha256 not in {None, found.sha256}:
        draft.unlink()
        raise BadModel(
            f"its content is {found.sha256}, not the {archive.sha256} that the address pins",
            where=archive.url,
            remedy="correct spec.model.source, or restore the archive that it stands for",
        )
    for old in root.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    aside = root / "unpacking"
    aside.mkdir()
    inner = unpack_archive(draft, aside, where=archive.url).relative_to(aside)
    aside.rename(root / found.sha256)
    draft.unlink()
    _write_index(root / _INDEX, {"folder": [f"{found.sha256}/{inner}"], "tag": [found.tag]})
    return root / found.sha256 / inner


def _folder_of(root: Path, known: dict[str, list[int | str]]) -> Path | None:
    """What was unpacked before, if it is still there."""
    folder = known.get("folder")
    path = root / str(folder[0]) if folder else None
    return path if path is not None and path.is_dir() else None


def _mirror(address: str, root: Path, *, where: str, named: Iterable[str]) -> Path:
    """Make `root/files` equal to the folder in the bucket."""
    from genai_cli.engine.bucket_access import bucket_access
    from genai_core.store.location import buckets_are_readable, open_source_folder

    if not buckets_are_readable():
        raise InvalidSpec(
            "a source in a bucket needs boto3, which is not installed",
            where=where,
            remedy="pip install 'genai-operator[s3]', or download the model and name its folder",
        )
    access = bucket_access(address, named)
    with access.explained(where):
        return _mirrored(open_source_folder(access.where, access.credentials), address, root)


def _mirrored(source: SourceFolder, address: str, root: Path) -> Path:
    files = root / "files"
    index = _read_index(root / _INDEX)
    kept: dict[str, list[int | str]] = {}
    listing = source.list()
    _leave_out(files, listing.keys())
    fetched = False
    for name, listed in listing.items():
        try:
            path = files / check_relative_path(name)
        except ValueError as error:
            raise BadModel(f"an object's name is no path: {error}", where=address) from error
        stamp: list[int | str] = [listed.size, listed.tag]
        if index.get(name) != stamp or not _has_size(path, listed.size):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = root / "draft"
            source.fetch(name, draft, size=listed.size, tag=listed.tag)
            draft.replace(path)
            fetched = True
            # An interrupted mirror goes on where it stopped.
            _write_index(root / _INDEX, index | kept | {name: stamp})
        kept[name] = stamp
    _write_index(root / _INDEX, kept)
    if fetched and source.list() != listing:
        # An upload that was under way when it began would leave half of one version and half of
        # the next.
        raise SourceChanging(
            "objects came, went or changed while the source was fetched",
            where=address,
            remedy="run the same command again; only what changed is fetched",
        )
    return files


def _leave_out(files: Path, names: AbstractSet[str]) -> None:
    """Remove what is no longer in the bucket, before a folder may come in a file's place."""
    for path in sorted(files.rglob("*"), reverse=True):  # what a folder holds, then the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()  # it is not empty
        elif path.relative_to(files).as_posix() not in names:
            path.unlink()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _read_index(path: Path) -> dict[str, list[int | str]]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write_index(path: Path, index: dict[str, list[int | str]]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(index), encoding="utf-8")
    draft.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as stream:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield

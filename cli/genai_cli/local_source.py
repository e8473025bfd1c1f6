"""A model behind an address, brought to this machine.

Stages on a laptop read the model from disk, so a folder in a bucket is mirrored once into the
user's cache; later builds fetch only objects whose size or tag has changed. Keys are made of
content, so a model built from a mirror, from a local folder or in a cluster has the same ones.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genai_core.canonical import digest_json
from genai_core.errors import BadModel, InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.record import check_relative_path

__all__ = ["bring_source"]

_INDEX = "index.json"


def bring_source(spec: BuildSpec, cache: Path) -> BuildSpec:
    """The spec with a folder of this machine as its source.

    Args:
        spec: As written; returned as it is unless its source is an `s3://` address.
        cache: Folder that mirrors lie in.

    Raises:
        InvalidSpec: The address cannot be read, or boto3 is not installed.
        GenAIError: The bucket cannot be read, or there is no room.
    """
    address = spec.model.source
    if not address.startswith("s3://"):
        return spec
    root = cache / "sources" / digest_json({"source": address})[:32]
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        files = _mirror(address, root)
    model = spec.model.model_copy(update={"source": str(files)})
    return spec.model_copy(update={"model": model})


def _mirror(address: str, root: Path) -> Path:
    """Make `root/files` equal to the folder in the bucket."""
    try:
        from genai_core.store.s3_location import parse_s3
        from genai_core.store.s3_source import S3Source
    except ImportError as error:
        raise InvalidSpec(
            "a source in a bucket needs boto3, which is not installed",
            where="spec.model.source",
            remedy="pip install 'genai-operator[s3]', or download the model and name its folder",
        ) from error
    source = S3Source(parse_s3(address))
    files = root / "files"
    index = _read_index(root / _INDEX)
    kept: dict[str, list[int | str]] = {}
    for name, listed in source.list().items():
        try:
            path = files / check_relative_path(name)
        except ValueError as error:
            raise BadModel(f"an object's name is no path: {error}", where=address) from error
        stamp: list[int | str] = [listed.size, listed.tag]
        if index.get(name) != stamp or not _has_size(path, listed.size):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = root / "draft"
            source.fetch(name, draft, size=listed.size)
            draft.replace(path)
            # An interrupted mirror goes on where it stopped.
            _write_index(root / _INDEX, index | kept | {name: stamp})
        kept[name] = stamp
    for path in files.rglob("*"):
        if path.is_file() and path.relative_to(files).as_posix() not in kept:
            path.unlink()
    _write_index(root / _INDEX, kept)
    return files


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

"""What an image holds and how it was made: a CycloneDX bill of materials, an in-toto statement.

Both are read off the finished OCI archive and off this tree, not off what was meant to be in them:
packages by their installed metadata in the layers, Debian's by dpkg's own list. Nothing is signed
here: whoever publishes a release signs what this wrote.

Formats: CycloneDX 1.6 (JSON), OCI image layout 1.0, in-toto Statement v1 with SLSA Provenance v1.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
_SPACE = uuid.UUID("8f4f3f0e-5b0a-4f0b-9a0c-6d1a52c6b6a1")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_REFERENCE = "vnd.docker.reference.type"
_MOST_BYTES = 16 << 20
BUILD_TYPE = "https://genai-operator.dev/release/v1"


@dataclass
class Image:
    """One platform's image in an archive.

    Attributes:
        digest: Of its manifest.
        platform: `linux/amd64`.
        files: Path -> content, of what says which packages there are.
    """

    digest: str
    platform: str
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """For names of files."""
        return self.platform.rpartition("/")[2]


def images_of(archive: Path) -> list[Image]:
    """The images in an OCI archive, each with the packages' own lists."""
    with tarfile.open(archive) as tar:
        index = _json(tar, "index.json")
        return [_image(tar, entry) for entry in _manifests(tar, index["manifests"])]


def _manifests(tar: tarfile.TarFile, entries: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    for entry in entries:
        kind = entry.get("mediaType", "")
        if "index" in kind or "manifest.list" in kind:
            yield from _manifests(tar, _blob(tar, entry["digest"])["manifests"])
        elif (
            entry.get("annotations", {}).get("vnd.docker.reference.type") != "attestation-manifest"
        ):
            yield entry


def _image(tar: tarfile.TarFile, entry: Mapping[str, Any]) -> Image:
    manifest = _blob(tar, entry["digest"])
    config = _blob(tar, manifest["config"]["digest"])
    image = Image(entry["digest"], f"{config['os']}/{config['architecture']}")
    for layer in manifest["layers"]:
        raw = tar.extractfile(_place(layer["digest"]))
        assert raw is not None
        with tarfile.open(fileobj=raw, mode="r:*") as contents:
            _apply(contents, image.files)
    return image


def _apply(layer: tarfile.TarFile, files: dict[str, bytes]) -> None:
    """Put a layer over those below it: what it says is gone, is gone."""
    added: dict[str, bytes] = {}
    for member in layer:
        path = PurePosixPath(member.name.removeprefix("./").lstrip("/"))
        if path.name == _OPAQUE:
            _remove(files, str(path.parent))
        elif path.name.startswith(_WHITEOUT):
            _remove(files, str(path.with_name(path.name.removeprefix(_WHITEOUT))))
        elif member.isfile() and _tells(path) and member.size <= _MOST_BYTES:
            content = layer.extractfile(member)
            added[str(path)] = content.read() if content is not None else b""
    files |= added


def _remove(files: dict[str, bytes], path: str) -> None:
    for name in [n for n in files if n == path or n.startswith(f"{path}/")]:
        del files[name]


def _tells(path: PurePosixPath) -> bool:
    if path.name == "METADATA" and path.parent.name.endswith(".dist-info"):
        return True
    return str(path) in {"var/lib/dpkg/status", "etc/os-release", "usr/lib/os-release"} or (
        str(path.parent) == "var/lib/dpkg/status.d" and not path.name.endswith(".md5sums")
    )


def bill_of_materials(image: Image, name: str, version: str, *, made: str) -> dict[str, Any]:
    """Every package in an image.

    Args:
        image: Of one platform.
        name: Of the image.
        version: Of the release.
        made: Time, RFC 3339.
    """
    parts = sorted([*_python(image), *_debian(image)], key=lambda part: part["purl"])
    purl = f"pkg:oci/{name}@{quote(image.digest, safe='')}?arch={image.machine}&tag={version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, image.digest)}",
        "version": 1,
        "metadata": {
            "timestamp": made,
            "component": {
                "type": "container",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
            },
        },
        "components": parts,
        "dependencies": [{"ref": purl, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _part(name: str, version: str, purl: str, licence: str = "") -> dict[str, Any]:
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return component | ({"licenses": [{"license": {"name": licence}}]} if licence else {})


def _python(image: Image) -> Iterator[dict[str, Any]]:
    for path, content in image.files.items():
        if not path.endswith(".dist-info/METADATA"):
            continue
        metadata = HeaderParser().parsestr(content.decode("utf-8", "replace"))
        name, version = str(metadata["Name"]), str(metadata["Version"])
        licence = str(metadata["License-Expression"] or metadata["License"] or "").strip()
        plain = name.lower().replace("_", "-").replace(".", "-")
        short = licence.splitlines()[0][:100] if licence else ""
        yield _part(name, version, f"pkg:pypi/{plain}@{quote(version)}", short)


def _debian(image: Image) -> Iterator[dict[str, Any]]:
    release = _os(image)
    for path, content in image.files.items():
        if not path.startswith("var/lib/dpkg/status"):
            continue
        for block in content.decode("utf-8", "replace").split("\n\n"):
            stanza = HeaderParser().parsestr(block)
            if not stanza["Package"] or "deinstall" in str(stanza["Status"] or ""):
                continue
            name, version = str(stanza["Package"]), str(stanza["Version"])
            where = f"arch={stanza['Architecture']}&distro={release}"
            yield _part(name, version, f"pkg:deb/debian/{name}@{quote(version)}?{where}")


def _os(image: Image) -> str:
    text = image.files.get("etc/os-release") or image.files.get("usr/lib/os-release") or b""
    pairs = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
    return f"{pairs.get('ID', 'linux')}-{pairs.get('VERSION_ID', '')}".strip('"-').replace('"', "")


@dataclass(frozen=True)
class Made:
    """How an archive was made.

    Attributes:
        target: Of the Dockerfile.
        builder: docker or buildah.
        arguments: `NAME=value` of the Dockerfile.
        started: Time, RFC 3339.
        finished: Likewise.
    """

    target: str
    builder: str
    platforms: Sequence[str]
    arguments: Sequence[str]
    started: str
    finished: str


def provenance(archive: Path, images: Sequence[Image], made: Made) -> dict[str, Any]:
    """The statement that this tree was made into that archive."""
    subject = [{"name": archive.name, "digest": {"sha256": _sha256(archive)}}]
    subject += [
        {"name": f"{archive.name}#{image.platform}", "digest": _digest(image.digest)}
        for image in images
    ]
    arguments = dict(text.split("=", 1) for text in made.arguments if "=" in text)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "target": made.target,
                    "platforms": list(made.platforms),
                    "buildArgs": arguments,
                },
                "resolvedDependencies": list(_materials(made.target, arguments.get("BASE"))),
            },
            "runDetails": {
                "builder": {"id": f"{BUILD_TYPE}/{Path(made.builder).name}"},
                "metadata": {"startedOn": made.started, "finishedOn": made.finished},
            },
        },
    }


def _materials(target: str, base: str | None) -> Iterator[dict[str, Any]]:
    commit = _git("rev-parse", "HEAD")
    if commit:
        changed = bool(_git("status", "--porcelain"))
        yield {
            "name": "source",
            "digest": {"gitCommit": commit},
            **({"annotations": {"changedSince": True}} if changed else {}),
        }
    for name in ("Dockerfile", f"requirements/{target}.txt", "constraints.txt"):
        path = ROOT / name
        if path.exists():
            yield {"name": name, "digest": {"sha256": _sha256(path)}}
    if base is not None:
        place, _, digest = base.partition("@")
        yield {"uri": f"docker://{place}", **({"digest": _digest(digest)} if digest else {})}


def _git(*command: str) -> str:
    ran = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _digest(text: str) -> dict[str, str]:
    kind, _, value = text.partition(":")
    return {kind: value}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(tar: tarfile.TarFile, digest: str) -> dict[str, Any]:
    return _json(tar, _place(digest))


def _json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    member = tar.extractfile(name)
    assert member is not None
    content: dict[str, Any] = json.load(member)
    return content

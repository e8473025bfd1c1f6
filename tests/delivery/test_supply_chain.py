"""What goes into an image is named by hash, what is in it is listed, how it was made is told."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import attest  # noqa: E402
import release  # noqa: E402
import requirements  # noqa: E402

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BASE = "BASE=python:3.12-slim@sha256:" + "0" * 64


def test_requirements_are_those_of_constraints() -> None:
    assert requirements.stale() == [], "run: make requirements"


@pytest.mark.parametrize("role", ["operator", "stages", "serving", "htp"])
def test_requirements_have_hashes_for_every_python_and_machine(role: str) -> None:
    text = (ROOT / "requirements" / f"{role}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\S+)==\S+ \\\n((?: {4}--hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    assert found
    for name, hashes in found:
        digests = re.findall(r"--hash=sha256:([0-9a-f]{64})", hashes)
        assert len(digests) == len(set(digests)) >= 1, name
    compiled = dict(found).get("aiohttp" if role == "operator" else "numpy", "")
    if role != "htp":
        assert compiled.count("sha256") == len(requirements.PYTHONS) * len(requirements.MACHINES)


def test_stale_names_a_list_when_a_version_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = requirements.pinned() | {"kopf": "0.0.1"}
    monkeypatch.setattr(requirements, "pinned", lambda: versions)
    assert requirements.stale() == ["requirements/operator.txt"]
    monkeypatch.setattr(requirements, "pinned", lambda: {"kopf": "1"})
    with pytest.raises(SystemExit, match=r"constraints.txt has no version of .*aiohttp"):
        requirements.stale()


def test_images_install_nothing_but_what_is_named_by_hash() -> None:
    installs = re.findall(r"^.*\bpip install\b.*$", DOCKERFILE, re.MULTILINE)
    assert installs
    assert all("--require-hashes" in line and "--no-deps" in line for line in installs)
    used = set(re.findall(r"/requirements/([a-z]+)\.txt", DOCKERFILE))
    assert used == {"operator", "stages", "serving", "htp"}
    assert "!requirements" in (ROOT / ".containerignore").read_text().splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["BASE=python:3.12-slim"],
        [BASE, "BASE=other"],
        [BASE[:-1]],
        ["BASE=@sha256:" + "0" * 64],
    ],
)
def test_check_base_refuses_a_base_that_may_be_another_tomorrow(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="named by digest"):
        release.check_base(arguments)
    release.check_base([*arguments, BASE])


# An archive by hand


def blob(tar: tarfile.TarFile, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    add(tar, f"blobs/sha256/{digest}", data)
    return f"sha256:{digest}"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def layer(files: Mapping[str, str], mode: str = "w:gz") -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode=mode) as tar:  # type: ignore[call-overload]
        for name, text in files.items():
            add(tar, name, text.encode())
    return found.getvalue()


def package(name: str, version: str, licence: str = "") -> dict[str, str]:
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
    text += f"License-Expression: {licence}\n" if licence else ""
    return {f"opt/genai/site-packages/{name}-{version}.dist-info/METADATA": text + "\nWords.\n"}


STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u9

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
LAYERS = [
    layer(
        {
            "var/lib/dpkg/status": STATUS,
            "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
            "etc/passwd": "root:x",
            **package("pip", "23.0"),
            **package("Old_Thing", "1"),
        },
        "w",
    ),
    layer({"./opt/genai/site-packages/.wh.pip-23.0.dist-info": "", **package("PyYAML", "6.0.3")}),
    layer(
        {
            "opt/genai/site-packages/Old_Thing-1.dist-info/.wh..wh..opq": "",
            **package("aiohttp", "3.14.5", "Apache-2.0"),
        }
    ),
]


def archive_of(path: Path, machines: tuple[str, ...]) -> Path:
    with tarfile.open(path, "w") as tar:
        entries: list[dict[str, Any]] = []
        for machine in machines:
            config = blob(tar, json.dumps({"os": "linux", "architecture": machine}).encode())
            layers = [{"digest": blob(tar, data)} for data in LAYERS]
            manifest = {"config": {"digest": config}, "layers": layers}
            kind = "application/vnd.oci.image.manifest.v1+json"
            digest = blob(tar, json.dumps(manifest).encode())
            entries.append({"mediaType": kind, "digest": digest})
        if len(machines) > 1:
            index = "application/vnd.oci.image.index.v1+json"
            nested = blob(tar, json.dumps({"manifests": entries}).encode())
            entries = [{"mediaType": index, "digest": nested}]
        add(tar, "index.json", json.dumps({"manifests": entries}).encode())
    return path


def test_bill_of_materials_lists_what_the_last_layer_leaves(tmp_path: Path) -> None:
    (image,) = attest.images_of(archive_of(tmp_path / "a.tar", ("amd64",)))
    bill = attest.bill_of_materials(image, "genai-operator", "1.0", made="2026-01-01T00:00:00Z")
    assert [part["purl"] for part in bill["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12",
        "pkg:pypi/aiohttp@3.14.5",
        "pkg:pypi/pyyaml@6.0.3",
    ]
    assert bill["components"][1]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert image.digest.replace(":", "%3A") in bill["metadata"]["component"]["purl"]
    again = attest.bill_of_materials(image, "genai-operator", "1.0", made="2026-01-01T00:00:00Z")
    assert again == bill, "the same image has the same bill, its serial number included"


def test_attested_writes_a_bill_for_each_platform_and_one_statement(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "genai-stages-1.0.oci.tar", ("amd64", "arm64"))
    made = attest.Made(
        *("stages", "/usr/bin/buildah", ("linux/amd64", "linux/arm64"), (BASE, "HTP=0")),
        started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:01:00Z",
    )
    written = release.attested(archive, "genai-stages", "1.0", made)
    assert [path.name for path in written] == [
        "genai-stages-1.0-amd64.cdx.json",
        "genai-stages-1.0-arm64.cdx.json",
        "genai-stages-1.0.intoto.json",
    ]
    statement = json.loads(written[-1].read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    digests = [entry["digest"]["sha256"] for entry in statement["subject"]]
    images = attest.images_of(archive)
    assert digests == [
        hashlib.sha256(archive.read_bytes()).hexdigest(),
        *(image.digest.removeprefix("sha256:") for image in images),
    ]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["buildArgs"]["HTP"] == "0"
    told = {
        entry.get("name") or entry["uri"]: entry for entry in definition["resolvedDependencies"]
    }
    assert told["docker://python:3.12-slim"]["digest"] == {"sha256": "0" * 64}
    lock = (ROOT / "requirements" / "stages.txt").read_bytes()
    digest = {"sha256": hashlib.sha256(lock).hexdigest()}
    assert told["requirements/stages.txt"]["digest"] == digest
    listed = release.listing([archive, *written], "1.0")
    assert len(listed["files"]) == 4

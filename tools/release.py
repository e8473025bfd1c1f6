"""Makes everything of one version that is installed: wheel, sdist, charts, images (`make release`).

    python tools/release.py                       # all of it into dist/
    python tools/release.py --without-images      # where no image builder is
    python tools/release.py --platform linux/amd64 --platform linux/arm64

The version is pyproject.toml's; charts that say another are refused. Images are OCI archives, built
with docker buildx or buildah on a base that is named by digest (`--build-arg BASE=...@sha256:...`),
and never hold the vendor's wheel. Beside each stand what it holds (CycloneDX, `.cdx.json`, for each
platform) and how it was made (in-toto, `.intoto.json`; not signed). `dist/release.json` lists every
file with its digest, and of an image also the digest by which a GenAITarget names it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attest
import yaml

ROOT = Path(__file__).parents[1]
CHARTS = ("genai-operator-crds", "genai-operator")
IMAGES = {"operator": "genai-operator", "stages": "genai-stages", "serving": "genai-serving"}
"""Target of the Dockerfile -> name."""


def version() -> str:
    """The version of the distribution."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def check_versions(wanted: str) -> None:
    """Refuse charts of another version.

    Raises:
        SystemExit: Names the chart and both versions.
    """
    for chart in CHARTS:
        path = ROOT / "charts" / chart / "Chart.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for field in ("version", "appVersion"):
            if str(document[field]) != wanted:
                raise SystemExit(
                    f"charts/{chart}/Chart.yaml: {field} is {document[field]}, pyproject.toml says "
                    f"{wanted}; write the same in both"
                )


def distributions(out: Path) -> list[Path]:
    """The wheel and the sdist."""
    # Without isolation: what they are built with is pinned like everything else.
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    _run(*command, env=_clock())
    return sorted(out.glob("genai_operator-*"))


def charts(out: Path, helm: str, wanted: str) -> list[Path]:
    """The charts as helm packages them."""
    for chart in CHARTS:
        _run(
            helm, "package", str(ROOT / "charts" / chart), "--destination", str(out),
            "--version", wanted, "--app-version", wanted,
        )  # fmt: skip
    return [out / f"{chart}-{wanted}.tgz" for chart in CHARTS]


@dataclass(frozen=True)
class ImageBuild:
    """How images are built.

    Attributes:
        builder: docker (with buildx) or buildah.
        platforms: `linux/amd64`, `linux/arm64`; none: this machine's.
        arguments: `NAME=value` of the Dockerfile.
    """

    builder: str
    platforms: Sequence[str] = ()
    arguments: Sequence[str] = ()

    def archive(self, target: str, tag: str, archive: Path) -> None:
        """Build one target into an OCI archive; of several platforms it holds all."""
        given = [f"--build-arg={argument}" for argument in self.arguments]
        given += [f"--platform={','.join(self.platforms)}"] if self.platforms else []
        if Path(self.builder).name == "docker":
            output = f"--output=type=oci,dest={archive}"
            _run(
                self.builder, "buildx", "build", "--target", target, "--tag", tag, *given, output,
                ".",
            )  # fmt: skip
            return
        several = len(self.platforms) > 1
        local, place = f"localhost/{tag}", f"oci-archive:{archive}:{tag}"
        _run(
            self.builder, "bud", "--layers", "--ignorefile", ".containerignore",
            "--target", target, "--manifest" if several else "--tag", local, *given, ".",
        )  # fmt: skip
        push = ("manifest", "push", "--all") if several else ("push",)
        _run(self.builder, *push, local, place)


def images(out: Path, wanted: str, how: ImageBuild) -> list[Path]:
    """OCI archives of the images, one for each role, with what is attested of them."""
    files = []
    for target, name in IMAGES.items():
        archive = out / f"{name}-{wanted}.oci.tar"
        started = _now()
        how.archive(target, f"{name}:{wanted}", archive)
        made = attest.Made(
            target, how.builder, how.platforms, how.arguments, started=started, finished=_now()
        )
        files += [archive, *attested(archive, name, wanted, made)]
    return files


def attested(archive: Path, name: str, wanted: str, made: attest.Made) -> list[Path]:
    """Files beside an archive that say what it holds and how it was made."""
    contents = attest.images_of(archive)
    statements = {
        f"{name}-{wanted}-{image.machine}.cdx.json": attest.bill_of_materials(
            image, name, wanted, made=made.finished
        )
        for image in contents
    }
    statements[f"{name}-{wanted}.intoto.json"] = attest.provenance(archive, contents, made)
    for file, value in statements.items():
        text = json.dumps(value, indent=1) + "\n"
        (archive.parent / file).write_text(text, encoding="utf-8")
    return [archive.parent / file for file in statements]


def check_base(arguments: Sequence[str]) -> None:
    """Refuse a base that may be another one tomorrow.

    Raises:
        SystemExit: Says how to name it.
    """
    bases = [text.partition("=")[2] for text in arguments if text.startswith("BASE=")]
    if not bases or not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", bases[-1]):
        raise SystemExit(
            "a release's base is named by digest: --build-arg BASE=python:3.12-slim@sha256:..., "
            "which `docker buildx imagetools inspect python:3.12-slim` prints; for a trial "
            "--any-base"
        )


def image_digest(archive: Path) -> str:
    """The digest by which a registry serves an archive that was copied as it is."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("index.json")
        assert member is not None
        index = json.load(member)
    return str(index["manifests"][0]["digest"])


def listing(files: Sequence[Path], wanted: str) -> dict[str, Any]:
    """What `release.json` says."""
    entries = []
    for path in files:
        entry: dict[str, Any] = {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        if path.name.endswith(".oci.tar"):
            entry["image"] = image_digest(path)
        entries.append(entry)
    return {"version": wanted, "files": entries}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clock() -> Mapping[str, str]:
    """Files of the wheel bear the commit's time, so that the same commit makes the same bytes."""
    ran = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"SOURCE_DATE_EPOCH": ran.stdout.strip()} if ran.returncode == 0 else {}


def _run(*command: str, env: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | dict(env or {}))


def _helm() -> str:
    from manifests import helm

    return helm()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--without-images", action="store_true")
    parser.add_argument("--builder", default=shutil.which("docker") or "buildah")
    parser.add_argument("--platform", action="append", default=[], help="e.g. linux/arm64")
    parser.add_argument("--any-base", action="store_true", help="also one without a digest")
    parser.add_argument("--build-arg", action="append", default=[], help="e.g. BASE=...")
    given = parser.parse_args()
    wanted = version()
    check_versions(wanted)
    if not given.without_images and not given.any_base:
        check_base(given.build_arg)
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    files = [*distributions(out), *charts(out, _helm(), wanted)]
    if not given.without_images:
        how = ImageBuild(given.builder, given.platform, given.build_arg)
        files += images(out, wanted, how)
    contents = listing(files, wanted)
    (out / "release.json").write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    for entry in contents["files"]:
        print(f"{entry['sha256']}  {entry['file']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

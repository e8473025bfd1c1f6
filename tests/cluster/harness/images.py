"""Images without a registry: a pause program, a base from Debian, the project's own Dockerfile."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from harness.programs import alone, cache

ROOT = Path(__file__).parents[3]
_PAUSE = (
    "#include <unistd.h>\n#include <signal.h>\n"
    "int main(void){signal(SIGTERM,_exit);for(;;)pause();}"
)
ROOMS = {
    "operator": ("core", "planner", "operator"),
    "stages": ("core", "runtime", "stages"),
    "serving": ("core", "runtime", "serving"),
}
"""What an image is made of; the others may change without making it anew."""
_PIP_FILES = ("/etc/pip.conf", "/etc/ssl/certs")
"""This machine's way to the package index, which its images use while they are built."""
_LEFT_BY_APT = (
    "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man",
)  # fmt: skip
"""Half of what debootstrap leaves; nothing that runs reads it."""
_BUILDAH = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


def _run(*command: str, cwd: Path | None = None) -> str:
    ran = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | _BUILDAH,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command[:3])}: {ran.stderr[-2000:]}")
    return ran.stdout.strip()


def pause() -> Path:
    """The sandbox image: a static program that waits."""
    archive = cache() / "pause-1.tar"
    with alone("images"):
        if not archive.exists():
            source, program = cache() / "pause.c", cache() / "pause"
            source.write_text(_PAUSE)
            _run("gcc", "-static", "-Os", "-o", str(program), str(source))
            container = _run("buildah", "from", "scratch")
            _run("buildah", "copy", container, str(program), "/pause")
            _run("buildah", "config", "--entrypoint", '["/pause"]', container)
            _commit(container, "localhost/pause:1", archive)
    return archive


def debian_python() -> str:
    """Name of a base image with Python from Debian, for where nothing can be pulled."""
    name = "localhost/debian-python:2"
    if _present(name):
        return name
    folder = cache() / "debian"
    if not (folder / "usr/bin/python3").exists():
        _run(
            "debootstrap", "--variant=minbase",
            "--include=python3,python3-venv,python3-pip,ca-certificates", "bookworm", str(folder),
        )  # fmt: skip
    for left in _LEFT_BY_APT:
        shutil.rmtree(folder / left, ignore_errors=True)
    container = _run("buildah", "from", "scratch")
    _run("buildah", "add", container, str(folder), "/")
    _run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
    _run("buildah", "commit", container, name)
    _run("buildah", "rm", container)
    return name


def project(target: str) -> Path:
    """Archive of one target of the project's Dockerfile, built on the Debian base."""
    digest = hashlib.sha256()
    listed = _run(
        "git", "ls-files", "-z", "--", "Dockerfile", "requirements",
        *ROOMS[target], cwd=ROOT,
    )  # fmt: skip
    for name in sorted(filter(None, listed.split("\0"))):
        if (ROOT / name).is_file():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    archive = cache() / f"genai-{target}-{digest.hexdigest()[:16]}.tar"
    with alone("images"):  # one tag, so one build at a time
        _build(target, archive)
        _forget(target, keep=archive)
    return archive


def _build(target: str, archive: Path) -> None:
    if not archive.exists():
        image = f"localhost/genai-{target}:test"
        mounts = [f"--volume={path}:{path}:ro" for path in _PIP_FILES if Path(path).exists()]
        _run(
            "buildah", "bud", "--pull-never", "--layers", *mounts,
            "--build-arg", f"BASE={debian_python()}", "--build-arg", "HTP=1",
            "--ignorefile", ".containerignore", "--target", target, "--tag", image, ".", cwd=ROOT,
        )  # fmt: skip
        _push(image, archive)


def _forget(target: str, *, keep: Path) -> None:
    """Old archives and the layers of old images go: each is hundreds of megabytes."""
    others = [path for path in cache().glob(f"genai-{target}-*.tar") if path != keep]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-2]:
        path.unlink()
    # Layers that the newest image stands on stay, so the next build begins from them; so do those
    # that another build stands on at this moment, which buildah says with an error.
    command = ["buildah", "rmi", "--prune"]
    subprocess.run(command, env=os.environ | _BUILDAH, capture_output=True, check=False)


def _present(name: str) -> bool:
    ran = subprocess.run(
        ["buildah", "inspect", "--type", "image", name],
        env=os.environ | _BUILDAH,
        capture_output=True,
        check=False,
    )
    return ran.returncode == 0


def _commit(container: str, name: str, archive: Path) -> None:
    _run("buildah", "commit", container, name)
    _run("buildah", "rm", container)
    _push(name, archive)


def _push(name: str, archive: Path) -> None:
    aside = archive.with_suffix(".tmp")
    aside.unlink(missing_ok=True)
    _run("buildah", "push", name, f"docker-archive:{aside}:{name}")
    aside.replace(archive)

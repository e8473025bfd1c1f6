"""How a container is put on a device and started: the commands that people copy.

Genie and its libraries are the vendor's and come with the Qualcomm AI Runtime SDK; what is printed
names them by their places in it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from genai_cli.containers.choice import trial_of
from genai_core import chips
from genai_core.container.manifest import (
    EMULATION_FOLDER,
    MANIFEST_FILE,
    REPORT_FILE,
    Manifest,
    read_manifest,
)
from genai_core.errors import UnknownTarget
from genai_core.names import Backend

__all__ = ["DeviceStep", "steps"]

_ROOT = "/data/local/tmp/genai"
_SDK = "$QAIRT_SDK_ROOT"
_LIBRARIES = ("libGenie.so", "libQnnHtp.so", "libQnnHtpNetRunExtensions.so", "libQnnSystem.so")
_NOT_NEEDED = {EMULATION_FOLDER, REPORT_FILE}
_PROMPT = "Once upon a time"


@dataclass(frozen=True)
class DeviceStep:
    """Commands that belong together."""

    about: str
    commands: tuple[str, ...]


def steps(folder: Path, *, name: str) -> list[DeviceStep]:
    """What to do with a container.

    Args:
        folder: It lies there.
        name: Of the build: names the folder on the device.
    """
    path = folder / MANIFEST_FILE
    manifest = read_manifest(path.read_bytes(), where=str(path))
    if manifest.target.backend is Backend.CPU:
        return [DeviceStep("run it here", (trial_of(folder),))]
    arch = manifest.target.dsp_arch
    device = shlex.quote(f"{_ROOT}/{name}-{manifest.target.name}")
    about = f"the runtime beside it, from the Qualcomm AI Runtime SDK{_version(manifest)}"
    found = (
        _windows(about, arch) if _is_windows(manifest) else _android(folder, device, about, arch)
    )
    if (folder / EMULATION_FOLDER).is_dir():
        found.append(DeviceStep("or run it here, in the emulator", (trial_of(folder),)))
    return found


def _android(folder: Path, device: str, about: str, arch: int | None) -> list[DeviceStep]:
    files = sorted(p.name for p in folder.iterdir() if p.name not in _NOT_NEEDED)
    lib = f"{_SDK}/lib/aarch64-android"
    runtime = [f"{_SDK}/bin/aarch64-android/genie-t2t-run", *(f"{lib}/{n}" for n in _LIBRARIES)]
    runtime += [
        f"{lib}/libQnnHtpV{arch}Stub.so",
        f"{_SDK}/lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so",
    ]
    start = (
        f"cd {device} && LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. "
        f'./genie-t2t-run -c genie_config.json -p "{_PROMPT}"'
    )
    return [
        DeviceStep(
            "put it on the device (adb of the Android platform tools)",
            (
                _on_device(f"mkdir -p {device}"),
                f"(cd {shlex.quote(str(folder))} && adb push {shlex.join(files)} {device}/)",
            ),
        ),
        DeviceStep(
            about,
            (
                f"adb push {' '.join(runtime)} {device}/",
                _on_device(f"chmod +x {device}/genie-t2t-run"),
            ),
        ),
        DeviceStep("start it in Genie", (f"adb shell {shlex.quote(start)}",)),
    ]


def _on_device(command: str) -> str:
    """`adb shell` hands its words to a shell of the device: what needs quotes needs them twice."""
    plain = command if re.fullmatch(r"[\w @%+=:,./-]+", command) else shlex.quote(command)
    return f"adb shell {plain}"


def _windows(about: str, arch: int | None) -> list[DeviceStep]:
    sdk = "$env:QAIRT_SDK_ROOT"
    places = ("bin/aarch64-windows-msvc", "lib/aarch64-windows-msvc")
    return [
        DeviceStep(
            f"copy the folder to the PC; {about} (PowerShell, inside the folder)",
            tuple(f"cp {sdk}/{place}/* ." for place in (*places, f"lib/hexagon-v{arch}/unsigned")),
        ),
        DeviceStep(
            "start it in Genie", (f'./genie-t2t-run.exe -c genie_config.json -p "{_PROMPT}"',)
        ),
    ]


def _is_windows(manifest: Manifest) -> bool:
    """Laptop chips: SC8380XP and its like."""
    if manifest.target.soc_model is None:
        return False
    try:
        return chips.by_number(manifest.target.soc_model).name.startswith("SC")
    except UnknownTarget:
        return False


def _version(manifest: Manifest) -> str:
    """The SDK's version that the container was compiled with, as far as its library says."""
    found = re.match(r"v?(\d+\.\d+)\.", manifest.target.library.get("buildId", ""))
    return f", {found[1]} or later" if found else ""

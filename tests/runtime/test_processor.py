"""Which processors need exact int8 kernels, from what Linux says about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from genai_runtime import processor
from genai_runtime.cpu.sessions import session_options

SHARED = "fpu sse4_1 avx avx2 fma"


def cpuinfo(tmp_path: Path, *flags: str, key: str = "flags") -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("\n".join(f"processor\t: {i}\n{key}\t\t: {f}\n" for i, f in enumerate(flags)))
    return path


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", True),
        ("avx512f", True),
        ("avx512_bf16 avx_vnni_int16", True),
        ("avx512_vnni", False),
        ("avx_vnni", False),
        ("amx_int8", False),
    ],
)
def test_saturates_only_when_there_is_neither_vnni_nor_amx(
    tmp_path: Path, more: str, expected: bool
) -> None:
    known = processor.features(cpuinfo(tmp_path, f"{SHARED} {more}"))
    assert processor.saturates(known) is expected


def test_features_are_those_of_all_processors_when_they_differ(tmp_path: Path) -> None:
    path = cpuinfo(tmp_path, f"{SHARED} avx_vnni", SHARED)
    assert processor.features(path) == frozenset(SHARED.split())


def test_features_are_read_when_the_processor_is_arm(tmp_path: Path) -> None:
    assert "asimddp" in processor.features(cpuinfo(tmp_path, "fp asimddp", key="Features"))


def test_saturates_when_the_system_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("processor : 0\n")
    for path in (tmp_path / "missing", tmp_path / "empty"):
        assert processor.features(path) == frozenset()
        assert processor.saturates(processor.features(path))


@pytest.mark.parametrize("exact", [True, False])
def test_session_options_carry_the_switch_when_exact_kernels_are_needed(exact: bool) -> None:
    options = session_options(1, exact=exact)
    if exact:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")

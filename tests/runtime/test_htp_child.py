"""Child processes: replies, reported errors, deaths and time limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genai_core.errors import BadModel, ToolFailed
from genai_runtime.htp import child

_CHILD = """
import ctypes, os, sys, time
from genai_core.errors import BadModel
from genai_runtime.htp import child

def handler(request):
    what = request["what"]
    if what == "crash":
        print("about to read address 0", flush=True)
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(60)
    if what == "refuse":
        raise BadModel("no good", where="node 7", remedy="change it")
    if what == "raise":
        raise RuntimeError("something else")
    if what == "grow":
        data = bytearray(200 << 20)
        data[::4096] = b"x" * len(data[::4096])
    print("said on stdout")
    return {"cwd": os.getcwd(), "path": sys.path[0], "echo": what}

child.serve(handler)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "a_child.py").write_text(_CHILD)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "a_child"


def test_reply_log_and_private_folder(module: str, tmp_path: Path) -> None:
    result = child.run(module, {"what": "echo"}, folder=tmp_path / "work")
    assert result.reply["echo"] == "echo"
    assert result.reply["cwd"] == str(tmp_path / "work")
    assert result.reply["path"] != result.reply["cwd"], "a file there must not replace a module"
    assert "said on stdout" in result.log
    assert result.seconds > 0


def test_peak_memory_is_the_childs(module: str) -> None:
    small = child.run(module, {"what": "echo"}).peak_memory_bytes
    large = child.run(module, {"what": "grow"}).peak_memory_bytes
    assert 150 << 20 < large - small < 260 << 20
    ours = bytearray(400 << 20)
    ours[::4096] = b"x" * len(ours[::4096])
    again = child.run(module, {"what": "echo"}).peak_memory_bytes
    assert again < small + (20 << 20), "the parent's own size must not enter"
    del ours


def test_an_error_of_ours_crosses_with_its_place_and_remedy(module: str) -> None:
    with pytest.raises(BadModel) as caught:
        child.run(module, {"what": "refuse"})
    assert str(caught.value) == "node 7: no good; change it"


def test_a_segmentation_fault_is_named_with_the_last_words(module: str, tmp_path: Path) -> None:
    log = tmp_path / "kept.log"
    with pytest.raises(ToolFailed, match=r"ended by SIGSEGV; last output: about to read address 0"):
        child.run(module, {"what": "crash"}, keep_log=log)
    assert "about to read" in log.read_text()


def test_a_time_limit_kills(module: str) -> None:
    with pytest.raises(ToolFailed, match=r"killed after 0\.5 s"):
        child.run(module, {"what": "hang"}, timeout=0.5)


def test_another_exception_is_a_tool_failure(module: str) -> None:
    with pytest.raises(ToolFailed, match=r"exit code 1.*RuntimeError: something else"):
        child.run(module, {"what": "raise"})


def test_a_stale_reply_is_not_taken_for_a_new_one(module: str, tmp_path: Path) -> None:
    child.run(module, {"what": "echo"}, folder=tmp_path / "work")
    with pytest.raises(ToolFailed):
        child.run(module, {"what": "crash"}, folder=tmp_path / "work")


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux numbers them")
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-11, "SIGSEGV"),
        (-9, "SIGKILL"),
        (-63, "signal 63"),
        (3, "exit code 3"),
        (None, "after 7 s"),
    ],
)
def test_exits_are_described(status: int | None, words: str) -> None:
    assert words in child.describe_exit(status, 7)


def test_last_words_leave_out_what_is_always_printed() -> None:
    log = (
        " # LIBNATIVE: No alternate configuration\n\x1b[1;31m[E:onnxruntime:, x.cc:1 F] Failed to "
        "create HTP power config id.\x1b[m\n\n\x1b[1;31mreal trouble\x1b[m\n"
    )
    assert child.last_words(log) == "; last output: real trouble"
    assert child.last_words("") == ""

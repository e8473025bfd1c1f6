"""`genai` as a process: help, usage errors, exit codes, standard output kept clean."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genai_cli.engine.work_folders import WorkFolder
from genai_cli.settings import ProgramSettings, read_settings
from genai_cli.testing import InProcess, Program
from genai_core.chips import CHIPS
from genai_core.errors import StoreUnreadable
from genai_core.store.address import parse_address
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.s3.s3_store import S3Store

COMMANDS = ["build", "graph", "replay", "inspect", "run", "verify", "evaluate", "cache"]


def test_help_lists_every_command(genai: Program) -> None:
    ran = genai("--help")
    assert ran.code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in ran.out] == []


@pytest.mark.parametrize("command", [*COMMANDS, "cache gc"])
def test_each_command_has_help(tmp_path: Path, command: str) -> None:
    ran = InProcess(tmp_path)(*command.split(), "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: genai {command} ")


@pytest.mark.parametrize("command", [[], ["cache"]])
def test_help_is_printed_when_there_is_nothing_to_do(tmp_path: Path, command: list[str]) -> None:
    call = InProcess(tmp_path)
    assert call(*command) == call(*command, "--help")


SM8 = [chip.name.lower() for chip in CHIPS if chip.name.startswith("SM8")]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("genai build m --target sm8", SM8),
        ("genai build m --target C", ["Cpu"]),
        ("genai build m --gaps ", ["Error", "Float", "Calibrate"]),
        ("genai graph m --precision int", ["int8", "int4"]),
        ("genai pull b --target cp", ["cpu"]),
        ("genai cache ls --operation co", ["convert", "compile"]),
    ],
)
def test_the_shell_is_offered_what_a_value_may_be(
    genai: Program, words: str, offered: list[str]
) -> None:
    asked = {
        "_GENAI_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = genai(env=asked)
    assert ran.out.split() == offered


def test_help_is_light() -> None:
    """0.4 s as a whole process; counted in time on the processor, since tests run side by side."""
    heavy = (
        "numpy onnx onnxruntime onnx_ir boto3 rich.console genai_core.kinds genai_core.tasks.record"
    )
    code = (
        "import sys\nfrom genai_cli.__main__ import main\n"
        "code = main(['--help'])\n"
        f"found = [m for m in {heavy.split()!r} if m in sys.modules]\n"
        "sys.exit(f'{code} {found}' if code or found else 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert spent < 0.4


def test_version_is_the_distribution_s(genai: Program) -> None:
    ran = genai("--version")
    assert ran.code == 0
    assert ran.out.strip()[0].isdigit()


BAD_INPUT = {
    "bild": "genai: no such command 'bild'",
    "build --jbos 2": "genai build: no such option: --jbos",
    "build -f b.yaml --jobs x": "genai build: invalid value for '-j' / '--jobs': Input should be",
    "build -f b.yaml --jobs 0": "genai build: invalid value for '-j' / '--jobs': Input should be",
    "run": "genai run: missing argument 'CONTAINER'",
    "evaluate c": "genai evaluate: missing option '--tokens'",
    "build": "genai: there is nothing to build; e.g. genai build -f build.yaml",
    "build -f b.yaml m": "genai: give a file with -f or a model's folder, not both",
    "build -f none.yaml": "none.yaml: no such file or directory; name a YAML file",
    "graph -f none.yaml": "none.yaml: no such file or directory; name a YAML file",
    "build no --target cpu": "no: there is no such folder; name the folder of a model",
    "build s3://b/m --target cpu": "s3:/b/m: it is an address, and only a folder is taken here",
    "run no --prompt x": "no: not a container: it has no manifest",
    "evaluate no --tokens x": "no: not a container: it has no manifest",
    "inspect no": "no: neither a container nor an artifact; name a container's",
    "replay no": "no: it is no key and no entry's folder; give a key",
    "cache ls --store no": "no: there is no store; name one with --store",
    "cache ls --store ftp://x": "ftp://x: a store is a folder or s3://bucket/prefix",
}

PROCESSES = {"bild", "build -f none.yaml", "run no --prompt x", "cache ls --store no"}
"""Those that are tried as processes too; the others inside this one, which is quicker."""


@pytest.mark.parametrize("line", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(genai: Program, tmp_path: Path, line: str) -> None:
    how = genai if line in PROCESSES else InProcess(tmp_path)
    ran = how(*line.split())
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.errors) == 1
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith(f"error: {BAD_INPUT[line]}")


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (errno.EROFS, 2, "BadInput"),
        (errno.EACCES, 2, "BadInput"),
        (errno.ENOTDIR, 2, "BadInput"),
        (errno.ENOSPC, 2, "NoSpace"),
        (errno.EDQUOT, 2, "NoSpace"),
        (errno.EIO, 1, "Failed"),
    ],
)
def test_command_ends_as_documented_when_the_system_refuses_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, kind: str
) -> None:
    def refused(*, obj: ProgramSettings, **_: object) -> int:
        obj.json = True
        raise OSError(number, os.strerror(number), "out/model.data")

    monkeypatch.setattr("genai_cli.app.app", refused)
    ran = InProcess(tmp_path)("cache", "ls")
    assert ran.code == code
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith(f"error: out/model.data: {os.strerror(number)}")
    assert json.loads(ran.out)["error"]["code"] == kind


def test_build_names_the_cache_folder_when_it_cannot_work_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, so that no folder can be made")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = S3Store(parse_address("s3://bucket/p?endpoint=http://127.0.0.1:9"))
    with pytest.raises(StoreUnreadable, match="set XDG_CACHE_HOME to a folder"):
        WorkFolder(bucket)
    with pytest.raises(StoreUnreadable, match="name another store"):
        WorkFolder(DirectoryStore(tmp_path / "cache" / "store"))


def test_every_problem_of_a_file_is_a_line(genai: Program, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        "apiVersion: genai-operator.dev/v1alpha1\nkind: GenAIBuild\nmetadata: {name: X}\n"
        "spec: {model: {source: m}, targets: [], quantisation: {}}\n"
    )
    ran = genai("build", "-f", "b.yaml")
    assert ran.code == 2
    assert [line.split(": ")[1:3] for line in ran.errors] == [
        ["b.yaml:3", "metadata.name"],
        ["b.yaml:4", "spec.targets"],
        ["b.yaml:4", "spec.quantisation"],
    ]


def test_with_json_an_error_is_the_one_object_too(genai: Program) -> None:
    ran = genai("build", "-f", "none.yaml", "--json")
    assert ran.code == 2
    assert ran.json == {
        "error": {
            "code": "InvalidSpec",
            "message": "no such file or directory",
            "where": "none.yaml",
            "remedy": "name a YAML file",
        }
    }
    assert len(ran.errors) == 1


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debugging_shows_where_an_error_comes_from(genai: Program, how: str) -> None:
    arguments = ["build", "-f", "none.yaml"]
    if how == "option":
        ran = genai("--debug", *arguments)
    else:
        ran = genai(*arguments, env={"GENAI_DEBUG": "1"})
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: none.yaml: ")


def test_a_defect_is_a_line_and_exit_code_1(tmp_path: Path) -> None:
    """Whatever a command raises, users see one line; here the planner is made to break."""
    code = (
        "import genai_cli.build.spec_source as s\n"
        "def broken(*_): raise ZeroDivisionError('an accident')\n"
        "s.build_of = broken\n"
        "from genai_cli.__main__ import main\nimport sys\n"
        "sys.exit(main(['build', '-f', 'x.yaml']))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        (
            "error: ZeroDivisionError: an accident; this is a defect; run it again with "
            "GENAI_DEBUG=1 and report what it prints"
        )
    ]


def test_a_library_that_is_not_installed_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['numpy'] = None\n"
        "from genai_cli.__main__ import main\n"
        "sys.exit(main(['run', 'c', '--prompt', 'x']))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: numpy: this command needs it, and it is not installed; "
        "pip install 'genai-operator[all]'\n"
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_130_and_one_line(tmp_path: Path, signum: signal.Signals) -> None:
    """The file is a pipe that nobody writes, so the program is certainly inside a command."""
    os.mkfifo(tmp_path / "b.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "genai_cli", "build", "-f", "b.yaml", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Opening our end returns once the program has opened its own.
    writer = os.open(tmp_path / "b.yaml", os.O_WRONLY)
    try:
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    finally:
        os.close(writer)
    assert process.returncode == 130
    assert err.splitlines() == ["error: interrupted; the same command goes on where it stopped"]
    assert json.loads(out)["error"]["code"] == "Interrupted"


def test_an_error_told_to_a_closed_pipe_is_just_its_exit_code(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "genai_cli", "cache", "ls", "--store", "nowhere", "--json"],
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: nowhere: there is no store; name one with --store; genai build makes it\n"
    )


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "genai_cli", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    os.close(write)
    assert ran.stderr == ""
    assert ran.returncode == 0


def test_a_terminal_that_knows_ascii_only_is_no_error(genai: Program) -> None:
    ran = genai("inspect", "é", env={"PYTHONIOENCODING": "ascii"})
    assert ran.code == 2
    assert ran.err.startswith("error: ?: neither a container nor an artifact")


def test_json_is_whole_in_any_encoding(genai: Program, tmp_path: Path) -> None:
    (tmp_path / "é").mkdir()
    for encoding in ("ascii", "utf-8"):
        ran = genai("cache", "ls", "--store", "é", "--json", env={"PYTHONIOENCODING": encoding})
        assert ran.json["store"].endswith("é")


def test_completion_is_offered(genai: Program) -> None:
    ran = genai(
        env={"_GENAI_COMPLETE": "complete_bash", "COMP_WORDS": "genai ev", "COMP_CWORD": "1"}
    )
    assert ran.out.split() == ["evaluate"]


def test_settings_come_from_the_environment() -> None:
    home = {"HOME": "/srv/u"}
    assert read_settings(home).store == "/srv/u/.cache/genai-operator/store"
    assert read_settings(home | {"XDG_CACHE_HOME": "/c"}).store == "/c/genai-operator/store"
    relative = home | {"XDG_CACHE_HOME": "c"}
    assert read_settings(relative).store == "/srv/u/.cache/genai-operator/store"
    assert read_settings(home | {"GENAI_STORE": "s3://b/p"}).store == "s3://b/p"
    assert read_settings(home | {"GENAI_DEBUG": "0"}).debug is False
    assert read_settings(home | {"GENAI_DEBUG": "1"}).debug is True


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    """A container's user, say, whom no one knows by name."""
    code = (
        "import pwd, sys\n"
        "def nobody(*_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "from genai_cli.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for command in (["cache", "ls"], ["build", "m", "--target", "cpu"]):
        (tmp_path / "m").mkdir(exist_ok=True)
        ran = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 2, ran.stderr
        assert "~ stands for no home folder here" in ran.stderr
        assert "set HOME" in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_home_that_nobody_has_is_named(genai: Program) -> None:
    (genai.folder / "b.yaml").write_text(
        "apiVersion: genai-operator.dev/v1alpha1\nkind: GenAIBuild\nmetadata: {name: a}\n"
        "spec: {model: {source: ~no-such-user/m}, targets: [cpu]}\n"
    )
    for command in (["cache", "ls", "--store", "~no-such-user/s"], ["build", "-f", "b.yaml"]):
        ran = genai(*command)
        assert ran.code == 2
        assert "~no-such-user/" in ran.errors[0]
        assert "defect" not in ran.err

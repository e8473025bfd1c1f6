"""Names, logs and messages of others on a terminal: their control characters are text."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from genai_cli.containers.device import steps
from genai_cli.display import output
from genai_cli.display.console import PlainConsole
from genai_core.container.manifest import Manifest
from genai_core.errors import BadModel
from genai_core.redaction import plain

EVIL = "\x1b]0;owned\x07\x1b[2J\rname\x9b31m\u202e"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x0dname\x9b31m\u202e"


def test_plain_keeps_lines_and_tabs_and_shows_the_rest_as_escapes() -> None:
    assert plain(EVIL) == SHOWN
    assert plain("a\tb\nü \u2713 é") == "a\tb\nü \u2713 é"


def test_an_error_shows_control_characters_as_text() -> None:
    assert str(BadModel(EVIL, where=EVIL)).count(r"\x1b") == 4
    assert "\x1b" not in str(BadModel(EVIL, where=EVIL))


@pytest.mark.parametrize("colours", [True, False])
def test_a_console_writes_no_escapes_but_its_own(colours: bool) -> None:
    target = io.StringIO()
    console = PlainConsole(file=target, force_terminal=colours, width=200, highlight=False)
    table = Table("name")
    table.add_row(Text(EVIL, style="red"))
    console.print(table)
    console.print(EVIL, markup=False, soft_wrap=True)
    console.print(Text.assemble((EVIL, "bold")))
    text = target.getvalue()
    for harmful in ("\x1b]", "\x1b[2J", "\x07", "\r", "\x9b", "\u202e"):
        assert harmful not in text
    assert text.count("owned") == 3
    assert ("\x1b[31m" in text) == colours


def test_results_and_remarks_write_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.tell(EVIL)
    output.table(("a", "b"), [(EVIL, EVIL)])
    output.emit({EVIL: EVIL})
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(out + err)
    assert err == f"{SHOWN}\n"


def test_printed_commands_are_one_word_each_when_names_are_hostile(tmp_path: Path) -> None:
    """The container came from a stranger's store; its target's name ends in a shell."""
    folder = tmp_path / "a; touch owned"
    folder.mkdir()
    (folder / "$(touch owned).bin").touch()
    manifest = Manifest.model_validate(
        {
            "model": {}, "architecture": "llama", "context_length": 1, "files": {},
            "target": {
                "name": "x'; touch owned; '", "backend": "Htp", "soc_model": 69, "dsp_arch": 79
            },
        }
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    commands = [command for step in steps(folder, name="tiny") for command in step.commands]
    assert commands
    for command in commands:
        assert "touch" not in shlex.split(command.strip("()"), posix=True)
        for word in shlex.split(command):  # what the device's own shell would be given
            assert command.startswith("(cd ") or "touch" not in shlex.split(word)

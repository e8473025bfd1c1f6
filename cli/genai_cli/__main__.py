"""`genai`: the entry point, and the one place where an error becomes a line and an exit code.

0 all went well, 2 bad input, 1 anything else, 130 interrupted. An error is one line on standard
error, `error: where: message; remedy`; with --json it is also the one object on standard output.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from types import FrameType

from typer.exceptions import Abort, TyperException

from genai_cli.settings import ProgramSettings, read_settings
from genai_core.errors import BadInput, GenAIError, Interrupted, NoSpace, OutOfMemory

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    settings = read_settings(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no arrow is worth a failed build
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from genai_cli.app import app

        code = app(args=argv, prog_name="genai", obj=settings, standalone_mode=False)
        sys.stdout.flush()
    except GenAIError as error:
        return _end(error, settings)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `genai`, `genai cache`
            return _help(error)
        return _end(_of_usage(error), settings)
    except (KeyboardInterrupt, Abort):
        return _end(_INTERRUPTED, settings)
    except BrokenPipeError:
        return _end_of_pipe()
    except SystemExit as error:  # how typer reports a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _end_of_pipe()
        raise
    except ModuleNotFoundError as error:
        return _end(_of_missing(error), settings, cause=error)
    except MemoryError:
        return _end(OutOfMemory("out of memory", remedy="allow fewer tasks with --jobs"), settings)
    except OSError as error:
        return _end(_of_system(error), settings)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        text = f"{type(error).__name__}: {error}"
        remedy = "this is a defect; run it again with GENAI_DEBUG=1 and report what it prints"
        return _end(GenAIError(text, remedy=remedy), settings, cause=error)
    if code == Interrupted.exit_code:  # how typer reports Ctrl-C
        return _end(_INTERRUPTED, settings)
    return code if isinstance(code, int) else 0


_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
"""Of a path that the user named: the same command ends in the same way."""
_INTERRUPTED = Interrupted("interrupted", remedy="the same command goes on where it stopped")


def _end(
    error: GenAIError, settings: ProgramSettings, *, cause: BaseException | None = None
) -> int:
    """Report an error; returns its exit code."""
    try:
        if settings.in_options:
            from genai_cli.option_words import in_options

            cause, error = cause or error, in_options(error)
        if settings.debug:
            traceback.print_exception(cause or error)
        for line in (str(error), *getattr(error, "__notes__", ())):
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        if settings.json:
            print(json.dumps({"error": error.as_dict()}))  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        _end_of_pipe()
    return error.exit_code


def _end_of_pipe() -> int:
    """Whoever read our output has seen enough; the interpreter must not flush into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _help(error: TyperException) -> int:
    """Print the help of a command that was given nothing to do."""
    context = getattr(error, "ctx", None)
    try:
        print(context.get_help() if context is not None else error.format_message())  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        return _end_of_pipe()
    return 0


def _of_usage(error: TyperException) -> GenAIError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "genai"
    message = " ".join(error.format_message().split()).rstrip(".")
    return BadInput(
        message[:1].lower() + message[1:], where=command, remedy=f"see {command} --help"
    )


def _of_missing(error: ModuleNotFoundError) -> GenAIError:
    """A library of an extra that was not installed; one of our own modules is a defect."""
    name = (error.name or "").split(".")[0]
    if name.startswith("genai_"):
        return GenAIError(f"{error.name} is missing", remedy="install genai-operator again")
    from genai_core.errors import NotRunnableHere

    return NotRunnableHere(
        "this command needs it, and it is not installed",
        where=name,
        remedy="pip install 'genai-operator[all]'",
    )


def _of_system(error: OSError) -> GenAIError:
    """What the operating system refuses, where no command says better what it was at."""
    said = error.strerror or str(error)
    where = str(error.filename) if error.filename is not None else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return NoSpace(said, where=where, remedy="make room there, or name another folder")
    if error.errno in _REFUSED:
        remedy = "name another file or folder, or make this one readable and writable"
        return BadInput(said, where=where, remedy=remedy)
    return GenAIError(said, where=where)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())

"""`genai-stage`: the worker. One task file in, one result file and an exit code out.

The same command is a local process of `genai build` and the container of a Job. Exit codes are
those of `genai_core.errors`: 2 tells a cluster that a retry cannot help.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from genai_core.container.adapter_addition import AdditionRequest
from genai_core.errors import GenAIError, Interrupted, NoSpace, OutOfMemory
from genai_core.files.foreign import is_failure
from genai_core.operations import OPERATIONS
from genai_core.store.location import open_store
from genai_core.tasks.task_file import TaskFile, TaskResult
from genai_core.tasks.toolchain import toolchain_of
from genai_stages.worker import runner
from genai_stages.worker.fork_server import serve
from genai_stages.worker.light_imports import put_off

log = logging.getLogger("genai_stages")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # Sums in one order, whatever the machine's cores: laptop and Job agree to the last digit.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    put_off()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    if arguments.command == "toolchain":
        return _toolchain()
    if arguments.command == "job":
        from genai_stages.worker.job import run_job  # brings boto3

        return run_job()
    if arguments.command == "adapter":
        return _adapter(arguments.request, arguments.result)
    if arguments.command == "serve":
        return serve(
            lambda request: run_file(
                request.task, request.store, result_file=request.result, scratch=request.scratch
            )
        )
    return run_file(
        arguments.task, arguments.store, result_file=arguments.result, scratch=arguments.scratch
    )


def run_file(task_file: Path, store: str, *, result_file: Path | None, scratch: Path | None) -> int:
    """Run the task of a file, write its result, and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    task = TaskFile.model_validate_json(task_file.read_bytes())
    result = execute(task, store, scratch)
    if result_file:
        write_result(result, result_file)
    if result.error is not None:
        error = result.error
        print(f"{error['code']}: {error['where']}: {error['message']}", file=sys.stderr)  # noqa: T201
    return result.exit_code


def execute(task: TaskFile, store: str, scratch_root: Path | None) -> TaskResult:
    """Run a task in a scratch folder of its own; every error becomes a result."""
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="genai-task-", dir=scratch_root))
    try:
        return runner.run_task(task, open_store(store), scratch)
    except GenAIError as error:
        log.error("%s", error)  # noqa: TRY400
        return runner.failed(task, error, started)
    except KeyboardInterrupt:
        return runner.failed(task, Interrupted("stopped before it was done"), started)
    except OSError as error:
        log.exception("the task failed")
        return runner.failed(task, _of_os_error(error), started)
    except MemoryError:
        log.exception("the task failed")
        return runner.failed(task, OutOfMemory("it was out of memory", where=task.id), started)
    except BaseException as error:
        if not is_failure(error):
            raise
        log.exception("the task failed")
        message = f"{type(error).__name__}: {error}"
        return runner.failed(task, GenAIError(message, where=task.id), started)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_result(result: TaskResult, path: Path) -> None:
    """Write the result file so that a reader never sees half of it."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(result.model_dump_json(exclude_none=True), encoding="utf-8")
    aside.replace(path)


def _of_os_error(error: OSError) -> GenAIError:
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return NoSpace(
            error.strerror or "no space left",
            where=str(error.filename or "scratch"),
            remedy="free some room or name another folder",
        )
    return GenAIError(str(error), where=str(error.filename or ""))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _toolchain() -> int:
    """Print what this environment computes with, as a GenAITarget declares it."""
    versions: dict[str, str] = {}
    for operation in OPERATIONS:
        versions.update(toolchain_of(operation).versions)
    print(json.dumps(dict(sorted(versions.items())), indent=2))  # noqa: T201
    return 0


def _adapter(request: Path, result: Path) -> int:
    """Answer a request of `genai adapter add`."""
    from genai_stages.package.addition import answer  # brings the graph library

    said = answer(AdditionRequest.model_validate_json(request.read_bytes()))
    result.write_text(said.model_dump_json(), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genai-stage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one task")
    run.add_argument("task", type=Path, help="task file (JSON)")
    run.add_argument("--store", required=True, help="a folder or s3://bucket/prefix")
    run.add_argument("--result", type=Path, help="where the result is written (JSON)")
    run.add_argument("--scratch", type=Path, help="folder for scratch; default: the system's")
    commands.add_parser("serve", help="run tasks named on standard input, each in a fork")
    commands.add_parser("job", help="run the task that the environment holds, as a Job does")
    adapter = commands.add_parser("adapter", help="add an adapter to a copy of a container")
    adapter.add_argument("request", type=Path, help="what to add, and where (JSON)")
    adapter.add_argument("--result", type=Path, required=True, help="the answer (JSON)")
    commands.add_parser("toolchain", help="print the versions of the libraries computed with")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

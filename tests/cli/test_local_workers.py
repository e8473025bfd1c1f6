"""Workers that end well, end badly, hang, and lose the program that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genai_cli.engine.workers import Job, WorkerEnd, WorkerPool
from genai_core.errors import GenAIError

# A server whose tasks are Python files, so that a test can say what its task does.
STUB = """
from genai_stages.worker.fork_server import serve
def run(request):
    scope = {"request": request}
    exec(request.task.read_text(), scope)
    return scope.get("code", 0)
raise SystemExit(serve(run))
"""
COMMAND = (sys.executable, "-P", "-c", STUB)


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    pool = WorkerPool("store", tmp_path_factory.mktemp("pool") / "server.log", command=COMMAND)
    yield pool
    pool.close()


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Job]:
    def make(code: str) -> Job:
        name = f"{len(list(tmp_path.iterdir()))}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return Job(path, tmp_path / f"{name}.json", tmp_path, tmp_path / f"{name}.log")

    return make


def wait(pool: WorkerPool, count: int = 1, seconds: float = 60) -> list[WorkerEnd]:
    found: list[WorkerEnd] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += pool.poll(0.2)
    return found


def gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def read_when_there(path: Path, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("code = 0", 0),
        ("code = 2", 2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("raise RuntimeError('no')", 1),
        ("import sys; sys.exit(3)", 1),
    ],
)
def test_status_is_reported_as_subprocess_does(
    shared_pool: WorkerPool, job: Callable[[str], Job], code: str, status: int
) -> None:
    number = shared_pool.submit(job(code))
    (ended,) = wait(shared_pool)
    assert (ended.number, ended.status) == (number, status)
    assert ended.number not in shared_pool.pids


def test_output_of_a_task_lands_in_its_own_log(
    shared_pool: WorkerPool, job: Callable[[str], Job]
) -> None:
    jobs = [job(f"import os; print('hello {n}'); os.write(2, b'err {n}')") for n in range(2)]
    for one in jobs:
        shared_pool.submit(one)
    wait(shared_pool, 2)
    for n, one in enumerate(jobs):
        assert f"hello {n}" in one.log.read_text()
        assert f"err {n}" in one.log.read_text()


def test_peak_memory_is_of_the_task_alone(
    shared_pool: WorkerPool, job: Callable[[str], Job]
) -> None:
    shared_pool.submit(job("x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096])"))
    (large,) = wait(shared_pool)
    shared_pool.submit(job("pass"))
    (small,) = wait(shared_pool)
    assert large.peak_memory_bytes > 300_000_000
    assert small.peak_memory_bytes < 250_000_000


def test_tasks_run_at_the_same_time(shared_pool: WorkerPool, job: Callable[[str], Job]) -> None:
    meet = """
        import time
        from pathlib import Path
        mine, other = Path({mine!r}), Path({other!r})
        mine.write_text("here")
        for _ in range(600):
            if other.exists():
                break
            time.sleep(0.05)
        else:
            code = 1
    """
    folder = job("pass").scratch
    a, b = str(folder / "a.mark"), str(folder / "b.mark")
    shared_pool.submit(job(meet.format(mine=a, other=b)))
    shared_pool.submit(job(meet.format(mine=b, other=a)))
    assert [ended.status for ended in wait(shared_pool, 2)] == [0, 0]


def test_what_a_task_leaves_running_is_killed(
    shared_pool: WorkerPool, job: Callable[[str], Job]
) -> None:
    one = job("""
        import subprocess, sys
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleeper, start_new_session=True)
        request.result.write_text(str(child.pid))
    """)
    shared_pool.submit(one)
    wait(shared_pool)
    assert gone(int(one.result.read_text()))


def test_stop_asks_first_and_kills_what_does_not_listen(
    tmp_path: Path, job: Callable[[str], Job]
) -> None:
    pool = WorkerPool("store", tmp_path / "server.log", command=COMMAND)
    polite = job("""
        import os, signal, time
        def leave(*_):
            request.log.with_suffix(".asked").write_text("yes")
            os._exit(0)
        signal.signal(signal.SIGTERM, leave)
        request.result.write_text(str(os.getpid()))
        time.sleep(600)
    """)
    deaf = job("""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        request.result.write_text(str(os.getpid()))
        time.sleep(600)
    """)
    pool.submit(polite)
    pool.submit(deaf)
    pids = [int(read_when_there(one.result)) for one in (polite, deaf)]
    pool.poll(0.5)
    pool.stop(grace=1.0)
    assert polite.log.with_suffix(".asked").read_text() == "yes"
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_that_dies_takes_its_tasks_along_and_a_new_one_starts(
    tmp_path: Path, job: Callable[[str], Job], number: signal.Signals
) -> None:
    pool = WorkerPool("store", tmp_path / "server.log", command=COMMAND)
    try:
        one = job("""
            import os, time
            request.result.write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(600)
        """)
        pool.submit(one)
        task, server = map(int, read_when_there(one.result).split())
        pool.poll(0.5)
        os.kill(server, number)
        (ended,) = wait(pool)
        assert ended.status == -signal.SIGKILL
        assert gone(task)
        pool.submit(job("code = 0"))
        assert [ended.status for ended in wait(pool)] == [0]
    finally:
        pool.close()


def test_server_that_cannot_start_says_why(tmp_path: Path, job: Callable[[str], Job]) -> None:
    command = (sys.executable, "-c", "raise SystemExit('No module named genai_stages')")
    pool = WorkerPool("store", tmp_path / "server.log", command=command)
    pool.submit(job("pass"))
    with pytest.raises(GenAIError, match="No module named genai_stages"):
        wait(pool)


def test_everything_ends_with_the_program_that_started_it(
    tmp_path: Path, job: Callable[[str], Job]
) -> None:
    one = job("""
        import os, subprocess, sys, time
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleeper, start_new_session=True)
        request.result.write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
        time.sleep(600)
    """)
    program = f"""
import time
from pathlib import Path
from genai_cli.engine.workers import Job, WorkerPool
pool = WorkerPool("store", Path({str(tmp_path / "server.log")!r}), command={COMMAND!r})
pool.submit(Job(*map(Path, {[str(one.task), str(one.result), str(one.scratch), str(one.log)]!r})))
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program])
    try:
        pids = [int(pid) for pid in read_when_there(one.result).split()]
    finally:
        owner.kill()
        owner.wait()
    assert [gone(pid) for pid in pids] == [True, True, True]

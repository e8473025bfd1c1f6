"""Holds a stage still: its process stands, for the machine and the kubelet it runs on.

Faults hit what runs, and a stage runs for a second or two; a held one is still there to be hit.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from tenant import Tenant, wait


def processes_of(pod_uid: str) -> list[int]:
    """Ids of the processes in a pod's containers, the sandbox's own left out."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"/pod{pod_uid}/" not in (folder / "cgroup").read_text():
                continue
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"genai_stages" in command:
            found.append(int(folder.name))
    return found


def hold(tenant: Tenant, *, task: str = "", seconds: float = 90) -> dict[str, str]:
    """Wait for a stage that works, and stop it with SIGSTOP.

    Args:
        tenant: Whose.
        task: That its Job began with, or the beginning of its name; empty: any.
        seconds: How long to wait for one.

    Returns:
        Name, uid, node and Job of the pod.
    """
    found: dict[str, str] = {}

    def caught() -> bool:
        labels = "app.kubernetes.io/managed-by=genai-operator"
        known = tenant.get("jobs,pods", labels=labels)
        jobs = {
            value["metadata"]["name"]
            for value in known
            if value["kind"] == "Job"
            and value["metadata"]["annotations"]["genai-operator.dev/task"].startswith(task)
        }
        pods = [
            value
            for value in known
            if value["kind"] == "Pod"
            and value["metadata"]["labels"]["job-name"] in jobs
            and "nodeName" in value["spec"]
            and value["status"].get("phase") not in {"Succeeded", "Failed"}
        ]
        # A pod is known a second before its process begins: caught late, it may be done already.
        until = time.monotonic() + (0.6 if pods else 0.0)
        while True:
            for pod in pods:
                if _stop(pod["metadata"]["uid"]):
                    found.update(
                        name=pod["metadata"]["name"],
                        uid=pod["metadata"]["uid"],
                        node=pod["spec"]["nodeName"],
                        job=pod["metadata"]["labels"]["job-name"],
                    )
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(0.02)

    wait(caught, seconds)
    return found


def _stop(pod_uid: str) -> bool:
    stopped = False
    for process in processes_of(pod_uid):
        try:
            os.kill(process, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        stopped = True
    return stopped


def go_on(pod: dict[str, str]) -> None:
    """Let it work again."""
    for process in processes_of(pod["uid"]):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def send(pod: dict[str, str], number: signal.Signals, *, seconds: float = 20) -> None:
    """Signal the stage, once it listens: before that the kernel drops a signal to a first process.

    A held process gets it when it goes on.
    """
    deadline = time.monotonic() + seconds
    while True:
        for process in processes_of(pod["uid"]):
            if number is signal.SIGKILL or _catches(process, number):
                os.kill(process, number)
                with suppress(ProcessLookupError):  # killed, it may be gone by now
                    os.kill(process, signal.SIGCONT)
                return
        go_on(pod)
        assert time.monotonic() < deadline, f"{pod['name']} never listened"
        time.sleep(0.005)


def _catches(process: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)

"""Prometheus sees the first build, task or retry only where its series stood at 0 before."""

from __future__ import annotations

import subprocess
import sys

SHOWN = """
from prometheus_client import generate_latest
from genai_operator.manager.metrics_at_zero import begin_at_zero
begin_at_zero(["genaibuilds"], ["jobs"])
print(generate_latest().decode())
"""


def test_begin_at_zero_shows_each_counter_before_anything_was_counted() -> None:
    ran = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, check=True)
    shown = ran.stdout.splitlines()
    for series in (
        'genai_builds_ended_total{reason="Built"}',
        'genai_builds_ended_total{reason="BadModel"}',
        'genai_build_tasks_total{operation="ingest",result="cached"}',
        'genai_build_task_seconds_count{operation="chain",result="failed"}',
        'genai_build_task_retries_total{operation="compile",reason="OOMKilled"}',
        'genai_reconcile_seconds_count{kind="genaibuilds",result="ok"}',
        'genai_watch_missed_total{kind="jobs"}',
    ):
        assert f"{series} 0.0" in shown, series

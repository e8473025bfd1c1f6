"""`genai graph`: the plan of a build, without running it."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_cli import options
from genai_cli.build.spec_flags import SpecFlags
from genai_cli.settings import ProgramSettings

EXAMPLES = """\b
Examples:
  genai graph -f build.yaml
  genai graph -f build.yaml --html > plan.html
  genai graph -f build.yaml --explain package/cpu
"""


def graph(
    context: typer.Context,
    model: options.Model = None,
    *,
    file: options.File = None,
    name: options.Name = None,
    target: options.Target = None,
    ar: options.Ar = None,
    cl: options.Cl = None,
    splits: options.Splits = None,
    gaps: options.Gaps = None,
    precision: options.Precision = None,
    onnx: options.Onnx = None,
    encodings: options.Encodings = None,
    fields: options.Set = None,
    store: options.Store = None,
    read_from: options.ReadFrom = None,
    json: options.Json = False,
    html: Annotated[
        bool, typer.Option("--html", help="A page that draws the plan: genai graph ... > plan.html")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="TASK", help="Why this task will run, or not."),
    ] = None,
) -> int:
    """Show the tasks of a build, and which will run."""
    settings: ProgramSettings = context.obj
    settings.json = json
    flags = SpecFlags(
        file=file, model=model, name=name, target=target, ar=ar, cl=cl, splits=splits,
        gaps=gaps, precision=precision, onnx=onnx, encodings=encodings, fields=fields,
    )  # fmt: skip
    from genai_cli.build.plan_report import show_plan

    return show_plan(
        flags, settings, store=store, read_from=read_from or [], html=html, explain=explain
    )

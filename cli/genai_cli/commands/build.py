"""`genai build`: runs every task that is not cached and puts the containers into their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import DEFAULT_OUTPUT, Settings

EXAMPLES = """\b
Examples:
  genai build -f build.yaml
  genai build MODEL_DIR --target sm8750 --target cpu
"""


def build(
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
    fields: options.Set = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Gets <build>/<target>/.")
    ] = DEFAULT_OUTPUT,
    store: options.Store = None,
    read_from: options.ReadFrom = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", min=1, metavar="N", help="Tasks at once; else one a core."),
    ] = None,
    json: options.Json = False,
    print_spec: Annotated[
        bool, typer.Option("--print-spec", help="Print the YAML that would do it, and stop.")
    ] = False,
) -> int:
    """Build containers from a quantized model.

    Results are kept in the store: what is there already is not computed again, and after an
    interruption the same command goes on where it stopped.
    """
    settings: Settings = context.obj
    settings.json = json
    flags = options.SpecFlags(
        file=file, model=model, name=name, target=target, ar=ar, cl=cl, splits=splits,
        gaps=gaps, precision=precision, fields=fields,
    )  # fmt: skip
    from genai_cli.spec_source import as_yaml, build_of

    wanted = build_of(flags)
    if print_spec:
        typer.echo(as_yaml(wanted, folder=Path.cwd()), nl=False)
        return 0
    from genai_cli.building import run_build

    return run_build(
        wanted, settings, store=store, read_from=read_from or [], output=output, jobs=jobs
    )

"""`genai build`: runs every task that is not cached and puts the containers into their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.build.spec_flags import SpecFlags
from genai_cli.settings import DEFAULT_OUTPUT, ProgramSettings
from genai_core.errors import BadInput

EXAMPLES = """\b
Examples:
  genai build -f build.yaml
  genai build MODEL_DIR --target sm8750 --target cpu
  genai build -f build.yaml --remote -n team
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
    onnx: options.Onnx = None,
    encodings: options.Encodings = None,
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
    remote: Annotated[
        bool,
        typer.Option("--remote", help="In a cluster: upload the model, apply, follow."),
    ] = False,
    namespace: options.Namespace = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --remote: do not wait for the end.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --remote: take over what another tool applied.")
    ] = False,
    endpoint: options.Endpoint = None,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
) -> int:
    """Build containers from a quantized model.

    Results are kept in the store: what is there already is not computed again, and after an
    interruption the same command goes on where it stopped.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    flags = SpecFlags(
        file=file, model=model, name=name, target=target, ar=ar, cl=cl, splits=splits,
        gaps=gaps, precision=precision, onnx=onnx, encodings=encodings, fields=fields,
    )  # fmt: skip
    settings.in_options = file is None
    from genai_cli.build.spec_source import as_yaml, build_of

    wanted = build_of(flags)
    if print_spec:
        typer.echo(as_yaml(wanted, folder=Path.cwd()), nl=False)
        return 0
    if remote:
        written = context.get_parameter_source("output")
        _refuse(
            {
                "--output": written is not None and written.name == "COMMANDLINE",
                "--jobs": jobs,
                "--read-from": read_from,
            },
            "a build in a cluster does not have it",
            remedy="leave it out; see spec.run and the ArtifactStore, and genai pull",
        )
        from genai_cli.cluster.remote.remote_build import build_remotely
        from genai_cli.cluster.stores import StoreOptions

        return build_remotely(
            wanted,
            options.access(kubeconfig, context_name, namespace),
            settings,
            options=StoreOptions(store, endpoint),
            detach=detach,
            force=force,
        )
    _refuse(
        {
            "-n": namespace,
            "--detach": detach,
            "--force": force,
            "--endpoint": endpoint,
            "--kubeconfig": kubeconfig,
            "--context": context_name,
        },
        "it is of builds in a cluster",
        remedy="add --remote",
    )
    from genai_cli.build.local_build import run_build

    return run_build(
        wanted, settings, store=store, read_from=read_from or [], output=output, jobs=jobs
    )


def _refuse(given: Mapping[str, object], why: str, *, remedy: str) -> None:
    """What only the other kind of build has means that the other kind was meant."""
    for option, value in given.items():
        if value:
            raise BadInput(why, where=option, remedy=remedy)

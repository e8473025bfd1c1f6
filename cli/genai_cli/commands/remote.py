"""Commands that look at builds in a cluster: `status`, `logs`, `top`, `pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import completion, options
from genai_cli.settings import ProgramSettings
from genai_core.errors import BadInput

EXAMPLES_STATUS = """\b
Examples:
  genai status -A
  genai status tiny-llama -n team --watch
"""
EXAMPLES_LOGS = """\b
Examples:
  genai logs tiny-llama --follow
  genai logs tiny-llama compile/sm8750/2_of_3
"""
EXAMPLES_PULL = """\b
Examples:
  genai pull tiny-llama --target sm8750 -o tiny-llama-sm8750
  genai pull tiny-llama --target cpu --endpoint http://localhost:9000
"""


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of builds for the shell; silent where there is no cluster."""
    from genai_cli.cluster.builds import complete_build

    given = context.params
    return complete_build(
        incomplete, given.get("kubeconfig"), given.get("context_name"), given.get("namespace")
    )


Build = Annotated[str, typer.Argument(metavar="BUILD", help="Its name.", autocompletion=_names)]


def status(
    context: typer.Context,
    build: Annotated[
        str | None,
        typer.Argument(
            metavar="BUILD", help="One build in full.", autocompletion=_names, show_default=False
        ),
    ] = None,
    *,
    namespace: options.Namespace = None,
    everywhere: options.AllNamespaces = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Until Ctrl-C.")] = False,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
    json: options.Json = False,
) -> int:
    """Show the builds and deployments of a cluster, or those of one name in full."""
    settings: ProgramSettings = context.obj
    settings.json = json
    if build is not None and everywhere:
        raise BadInput("one build is in one namespace", where="-A", remedy="name it with -n")
    if watch and json:
        raise BadInput("--json prints one object", where="--watch", remedy="leave one of them out")
    from genai_cli.cluster.status import show_status

    access = options.access(kubeconfig, context_name, namespace)
    return show_status(access, settings, name=build, everywhere=everywhere, watch=watch)


def logs(
    context: typer.Context,
    build: Build,
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="Its id, the beginning of one, or a pattern; else all that run or failed.",
            show_default=False,
        ),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the build rests.")] = False,
    namespace: options.Namespace = None,
    store: options.StoreInstead = None,
    endpoint: options.Endpoint = None,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
) -> int:
    """Print what tasks of a build said, also when their pods are gone."""
    del context
    from genai_cli.cluster.logs import show_logs
    from genai_cli.cluster.stores import StoreOptions

    return show_logs(
        options.access(kubeconfig, context_name, namespace),
        name=build,
        task=task,
        follow=follow,
        options=StoreOptions(store, endpoint),
    )


def top(
    context: typer.Context,
    *,
    namespace: options.Namespace = None,
    everywhere: Annotated[
        bool, typer.Option("-A/-N", "--all-namespaces/--one-namespace", help="Of all namespaces.")
    ] = True,
    once: Annotated[bool, typer.Option("--once", help="Print it once.")] = False,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
    json: options.Json = False,
) -> int:
    """Show what builds do on which nodes, live."""
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.cluster.top import show_top

    access = options.access(kubeconfig, context_name, namespace)
    return show_top(access, settings, everywhere=everywhere and namespace is None, once=once)


def pull(
    context: typer.Context,
    build: Build,
    *,
    target: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--target",
            metavar="TARGET",
            help="Where it has several containers.",
            autocompletion=completion.targets,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The container's folder; else containers/..."
        ),
    ] = None,
    namespace: options.Namespace = None,
    store: options.StoreInstead = None,
    endpoint: options.Endpoint = None,
    kubeconfig: options.Kubeconfig = None,
    context_name: options.Context = None,
    json: options.Json = False,
) -> int:
    """Fetch a build's container out of the cluster, verified, and say how it is started."""
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.cluster.pull import pull_container
    from genai_cli.cluster.stores import StoreOptions

    return pull_container(
        options.access(kubeconfig, context_name, namespace),
        settings,
        name=build,
        target=target,
        output=output,
        options=StoreOptions(store, endpoint),
    )

"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genai_cli import completion

if TYPE_CHECKING:
    from genai_cli.cluster.connection import Access

File = Annotated[
    str | None,
    typer.Option(
        "-f", "--file", metavar="FILE", help="YAML with a GenAIBuild; - is standard input."
    ),
]
Model = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL_DIR", help="Instead of a file: a model's folder.", show_default=False
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Name of the build; chooses one where the file holds several."
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "-t",
        "--target",
        metavar="TARGET",
        help="sm8750, cpu, chipset:SM8750 or dsp_arch:v79;soc_model:69; repeat.",
        autocompletion=completion.targets,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="CONTAINER", show_default=False, help="With draft_model: the smaller model."
    ),
]
DraftTokens = Annotated[
    int | None,
    typer.Option(min=1, max=64, metavar="N", show_default=False, help="Guesses at once, at most."),
]
Ar = Annotated[
    list[str] | None, typer.Option("--ar", metavar="N,...", help="Tokens in one pass, e.g. 1,128.")
]
Cl = Annotated[
    list[str] | None, typer.Option("--cl", metavar="N,...", help="Context lengths, e.g. 4096.")
]
Splits = Annotated[str | None, typer.Option("--splits", metavar="N", help="A number, or auto.")]
Gaps = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="Tensors without an encoding: Error, Float or Calibrate.",
        autocompletion=completion.gaps,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="Of a cpu container: Auto, Int8, Int4 or Float.",
        autocompletion=completion.precisions,
    ),
]
Onnx = Annotated[
    str | None,
    typer.Option("--onnx", metavar="FILE", help="Of the model's folder, where it has several."),
]
Encodings = Annotated[
    str | None,
    typer.Option(
        "--encodings", metavar="FILE", help="Of the model's folder, where it has several."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field, e.g. golden.maxTokens=8."),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|s3://...", help="Where artifacts live; else GENAI_STORE, else ~/.cache."
    ),
]
ReadFrom = Annotated[
    list[str] | None,
    typer.Option("--read-from", metavar="DIR|s3://...", help="A further store, only read; repeat."),
]
Container = Annotated[
    Path,
    typer.Argument(
        metavar="CONTAINER",
        help="Its folder, or that of a build: what runs here is found.",
        show_default=False,
    ),
]
OneContainer = Annotated[
    Path, typer.Argument(metavar="CONTAINER", help="Its folder.", show_default=False)
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Slots of the cache (cpu); else as many as it was built for."
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME[=ALPHA]", help="LoRA adapter of the container; again for more."
    ),
]
UseCase = Annotated[
    str | None, typer.Option(metavar="NAME", help="Adapters that the build named together.")
]
Threads = Annotated[int, typer.Option(min=0, metavar="N", help="On the CPU; 0 is one a core.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Namespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", metavar="NAME", help="Else the context's."),
]
AllNamespaces = Annotated[
    bool, typer.Option("-A", "--all-namespaces", help="Those of all namespaces.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", metavar="FILE", help="Else KUBECONFIG, else ~/.kube/config."),
]
Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="Of the kubeconfig.")
]
StoreInstead = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="s3://...", help="Instead of what the ArtifactStore says; own keys."
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Where this machine reaches the store's server."),
]


def access(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Access:
    """Which cluster these options mean; imported late, since few commands ask."""
    from genai_cli.cluster.connection import Access

    return Access(kubeconfig, context, namespace)

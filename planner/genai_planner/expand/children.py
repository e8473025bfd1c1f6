"""Models of their own for the graphs of one AR (spec.children).

A child's graphs stand in the place of the model's in the same binaries, and go on with the cache
that the model's graphs fill. So what both must agree on is held against each other here, before
anything is converted: what the files and config.json say before any task runs, what only ingest
finds (rotary tables, whether weights are equal) once the sources are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from genai_core import compile_options
from genai_core.canonical import digest_json
from genai_core.errors import BadEncodings, BadModel, InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.child_model import Child
from genai_core.names import MODEL, Backend, Digest, Gaps, SourceName
from genai_core.sources.build_sources import model_spec
from genai_planner.expand.context import PlanContext
from genai_planner.expand.grid import GraphGrid
from genai_planner.shape import ModelShape
from genai_planner.sources import Source, Sources

__all__ = [
    "PlannedChild",
    "children_on_cpu",
    "missing_encodings",
    "options_of",
    "planned_children",
    "refuse_children",
]

_GRAPHS = "graphs."


@dataclass(frozen=True)
class PlannedChild:
    """A child and what its tasks follow from.

    Attributes:
        child: As written.
        context: Its own spec, shape, source and graphs.
        borrows: It has no calibration text of its own: the model's is taken.
    """

    child: Child
    context: PlanContext
    borrows: bool

    @property
    def weights(self) -> Digest:
        """Of all its files of weights; before ingest has run, of none."""
        return digest_json(dict(sorted(self.context.shape.contents.items())))


def _where(number: int, field: str) -> str:
    return f"spec.children[{number}].{field}"


def options_of(spec: BuildSpec, child: Child) -> dict[str, str]:
    """The compile options of a child's graphs, before a target's defaults."""
    return compile_options.merged(spec.compilation.options, child.compilation.options)


def missing_encodings(gaps: Gaps, source: Source, *, what: str, where: str) -> None:
    """Refuse a model without encodings where nothing says what then.

    Raises:
        BadEncodings: It has none.
    """
    if not source.has_encodings and gaps is Gaps.ERROR:
        raise BadEncodings(
            f"the {what} has no encodings",
            where=where,
            remedy="put its .encodings file beside it, or set gaps: Float for a float container, "
            "or gaps: Calibrate",
        )


def refuse_children(spec: BuildSpec, sources: Sources, backends: Collection[Backend]) -> None:
    """Refuse what can be told before any source is read.

    Raises:
        InvalidSpec: A compile option of the whole binary, or one of two arithmetics.
        BadEncodings: A child has none and the spec does not say what then.
    """
    for number, child in enumerate(spec.children):
        where = _where(number, "compilation.options")
        for name in child.compilation.options:
            if not name.startswith(_GRAPHS):
                raise InvalidSpec(
                    f"{name} is no option of a child: of compile options only {_GRAPHS}* may "
                    "differ, the rest is of the whole binary",
                    where=f"{where}.{name}",
                    remedy="set it in spec.compilation.options, or leave it out",
                )
        compile_options.parse(child.compilation.options, where=where)
        own = compile_options.parse(options_of(spec, child), where=where).optimization
        level = compile_options.parse(spec.compilation.options).optimization
        if own != level:
            raise InvalidSpec(
                f"its graphs.optimization_type is {own}, the build's "
                f"{'the default' if level is None else level}, and the graphs of one binary must "
                "share one",
                where=where,
                remedy="set it in spec.compilation.options",
            )
        if Backend.HTP not in backends:
            continue
        source, model = sources[child.source_name], sources[MODEL]
        gaps = model_spec(spec, child.source_name).quantization.gaps
        missing_encodings(gaps, source, what=f"child {child.label}", where=_where(number, "gaps"))
        if _is_float(source, gaps) != _is_float(model, spec.quantization.gaps):
            forms = {True: "floating point", False: "integers"}
            own_form = forms[_is_float(source, gaps)]
            models = forms[_is_float(model, spec.quantization.gaps)]
            raise InvalidSpec(
                f"its graphs compute in {own_form}, the model's in {models}, and both go on with "
                "one cache",
                where=_where(number, "gaps"),
                remedy="give both encodings, or neither",
            )
        if gaps is Gaps.CALIBRATE and not (child.calibration or spec.quantization.calibration):
            raise InvalidSpec(
                "gaps: Calibrate needs a text, and neither the child nor the build names one",
                where=_where(number, "calibration"),
                remedy="name a .npy or text file of the child's source",
            )


def _is_float(source: Source, gaps: Gaps) -> bool:
    return not source.has_encodings and gaps is Gaps.FLOAT


def planned_children(
    context: PlanContext, sources: Sources, shapes: Mapping[SourceName, ModelShape]
) -> tuple[PlannedChild, ...]:
    """The children, each held against the model.

    Args:
        context: The model's.
        sources: By name.
        shapes: Of every source that is a model.

    Raises:
        InvalidSpec: A child's AR is none of the build's, or every AR has a child.
        BadModel: A child does not fit the model.
    """
    spec, graphs = context.spec, context.grid.graphs
    ars = sorted({graph.ar for graph in graphs})
    found = []
    for number, child in enumerate(spec.children):
        if child.arn not in ars:
            raise InvalidSpec(
                f"AR {child.arn} is none of the build's, which are {', '.join(map(str, ars))}",
                where=_where(number, "arn"),
                remedy="name one of them, or add it to spec.graphs.autoRegression",
            )
        name = child.source_name
        _compare(shapes[name], context.shape, number)
        own = tuple(graph for graph in graphs if graph.ar == child.arn)
        alone = GraphGrid(own, context.grid.context_length, notes=(), warnings=())
        found.append(
            PlannedChild(
                child,
                PlanContext(model_spec(spec, name), shapes[name], sources[name], alone, name),
                borrows=child.calibration is None,
            )
        )
    if found and len(found) == len(ars):
        raise InvalidSpec(
            f"every AR ({', '.join(map(str, ars))}) has a child, and the model has none left",
            where="spec.children",
            remedy="make one of them the model",
        )
    return tuple(found)


def _compare(child: ModelShape, model: ModelShape, number: int) -> None:
    """Refuse a child whose graphs cannot stand in the model's place.

    Raises:
        BadModel: Names what differs, with both numbers.
    """
    for what, own, models in (
        ("vocabulary", child.vocab_size, model.vocab_size),
        ("number of layers", len(child.layers), len(model.layers)),
        ("hidden size", child.hidden_size, model.hidden_size),
    ):
        if own != models:
            raise _differs(f"its {what} is {own}, the model's {models}", number)
    for layer, (cache, other) in enumerate(zip(child.caches, model.caches, strict=False)):
        if cache != other:
            (heads, size), (model_heads, model_size) = cache, other
            raise _differs(
                f"its cache has {heads} heads of {size} values in layer {layer}, the model's "
                f"{model_heads} of {model_size}",
                number,
            )
    if child.exact and model.exact and child.rotary != model.rotary:
        raise _differs("its rotary tables are not the model's", number)


def _differs(what: str, number: int) -> BadModel:
    return BadModel(
        f"{what}: its graphs cannot stand in one binary with the model's",
        where=_where(number, "source"),
        remedy="export it from the same architecture as the model",
    )


def children_on_cpu(spec: BuildSpec, shapes: Mapping[SourceName, ModelShape]) -> tuple[str, ...]:
    """What the plan of a cpu target says of children: it has one graph for every AR.

    Raises:
        InvalidSpec: A child's weights are not the model's.
    """
    notes = []
    for number, child in enumerate(spec.children):
        own, model = shapes[child.source_name], shapes[MODEL]
        if not (own.exact and model.exact):
            notes.append(
                f"child {child.label}: a cpu container has one graph for every AR; once both are "
                "read, their weights are compared"
            )
            continue
        other = sorted(
            file
            for file in own.contents.keys() | model.contents.keys()
            if own.contents.get(file) != model.contents.get(file)
        )
        if other:
            raise InvalidSpec(
                f"the weights of child {child.label} are not the model's ({len(other)} of "
                f"{len(model.contents)} files of weights differ, the first is {other[0]}), and a "
                "cpu container has one graph for every AR",
                where=_where(number, "source"),
                remedy="build the cpu target without it, in a build of its own",
            )
        notes.append(
            f"child {child.label}: the cpu container has no need of it, whose one graph takes "
            "every AR and whose weights are equal"
        )
    return tuple(notes)

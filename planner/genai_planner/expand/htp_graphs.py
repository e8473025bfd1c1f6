"""Tasks of the htp targets that know no chip: static graphs, their splits, and conversion."""

from __future__ import annotations

from collections.abc import Sequence

from genai_core.graphs import graph_name
from genai_core.names import MODEL, Backend, TaskId
from genai_core.operations import (
    ArclConfig,
    ConvertHtpConfig,
    GraphConfig,
    SplitConfig,
    StartPoint,
    TransformConfig,
)
from genai_planner.expand import inputs
from genai_planner.expand.children import PlannedChild
from genai_planner.expand.context import PlanContext
from genai_planner.expand.lora import (
    GRAPH,
    branch_ranges,
    case_ranges,
    graph_inputs,
    of_case,
    of_graphs,
    of_quantized,
)
from genai_planner.expand.merged import MergedCase
from genai_planner.plan import Inputs, Selection, Task
from genai_planner.sizing import demand

__all__ = ["HtpGraphs", "folder_of"]


class _Origin:
    """The model that a graph is made from; what its parts read is found once, not for each task.

    Attributes:
        context: Of the model, or of a child.
        weights: Number of a split -> facts and files of weights.
        count: Number of a split -> weights in it.
    """

    def __init__(self, context: PlanContext, splits: tuple[SplitConfig, ...]) -> None:
        self.context = context
        self.weights = {split.index: self._files(split) for split in splits}
        self.count = {split.index: self._weights(split) for split in splits}

    def _weights(self, split: SplitConfig) -> int:
        shape = self.context.shape
        return (
            sum(shape.layers[split.first : split.last])
            + (shape.embedding if split.embedding else 0)
            + (shape.head if split.lm_head else 0)
        )

    def _files(self, split: SplitConfig) -> tuple[Selection, ...]:
        weights = inputs.part_weights(
            self.context.shape,
            range(split.first, split.last),
            embedding=split.embedding,
            lm_head=split.lm_head,
        )
        return inputs.ingested("facts.json", *weights, source=self.context.source)


class HtpGraphs:
    """The tasks of all graphs and splits, up to what a compile task reads.

    Attributes:
        context: Of the model.
        splits: In order.
        cases: Adapters and use cases with binaries of their own.
        children: AR -> the model of its own that its graphs are made from.
        count: Number of a split -> the model's weights in it.
    """

    def __init__(
        self,
        context: PlanContext,
        *,
        splits: tuple[SplitConfig, ...],
        cases: tuple[MergedCase, ...],
        children: Sequence[PlannedChild] = (),
    ) -> None:
        self.context = context
        self.splits = splits
        self.cases = cases
        self.children = {one.child.arn: one for one in children}
        self._spec = context.spec
        self._grid = context.grid
        self._origins: dict[int, _Origin] = {}
        own = _Origin(context, splits)
        for graph in self._grid.graphs:
            one = self.children.get(graph.ar)
            if graph.ar not in self._origins:
                self._origins[graph.ar] = own if one is None else _Origin(one.context, splits)
        self.count = own.count

    def converted(self, graph: GraphConfig, split: SplitConfig, case: MergedCase | None) -> TaskId:
        """The task that leaves a graph's split in the form that compile reads."""
        part = _part(graph_name(graph.ar, graph.cl), split)
        return TaskId(f"convert/htp/{self._folder(graph)}{folder_of(case)}{part}")

    def tasks(self, label: str) -> list[Task]:
        """arcl, transform and convert.

        Args:
            label: Of the one target that they are for; empty where there are several.
        """
        decided = (graph_inputs(self.context), branch_ranges(self.context))
        tasks = [task for task in decided if task is not None]
        tasks += [self._arcl(graph, label) for graph in self._grid.graphs]
        for graph in self._grid.graphs:
            tasks += [self._transform(graph, split, label) for split in self.splits]
        # A child's parts read those of the model, whose cache they go on with.
        for graph in sorted(self._grid.graphs, key=lambda one: one.ar in self.children):
            tasks += [self._convert(graph, split, label) for split in self.splits]
        if self.cases:
            tasks += self._tasks_of_cases(label)
        return tasks

    def _tasks_of_cases(self, label: str) -> list[Task]:
        """The static graphs that adapters become part of, and each use case's own."""
        pairs = [(graph, split) for graph in self._grid.graphs for split in self.splits]
        tasks = [self._arcl(graph, label, branched=True) for graph in self._grid.graphs]
        tasks += [self._transform(graph, split, label, branched=True) for graph, split in pairs]
        for case in self.cases:
            ranges = case_ranges(self.context, case)
            tasks += [] if ranges is None else [ranges]
            tasks += [self._convert(graph, split, label, case) for graph, split in pairs]
        return tasks

    def _arcl(self, graph: GraphConfig, label: str, *, branched: bool = False) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self._origins[graph.ar]
        adapters = {"adapters": inputs.whole(GRAPH)} if branched else of_graphs(self._spec)
        return Task(
            id=self._static("arcl", graph, branched=branched),
            operation="arcl",
            backend=None,
            config=ArclConfig(graph=graph),
            inputs={"model": inputs.core(origin.context.source), **adapters},
            demand=demand(
                "arcl", origin.context.shape.parameters, largest=origin.context.shape.largest
            ),
            target=label,
            graph=name,
        )

    def _transform(
        self, graph: GraphConfig, split: SplitConfig, label: str, *, branched: bool = False
    ) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self._origins[graph.ar]
        options = origin.context.spec.transformation
        return Task(
            id=self._static("transform", graph, split, branched=branched),
            operation="transform",
            backend=None,
            config=TransformConfig(
                graph=graph,
                split=split,
                mha2sha=options.mha2sha,
                start_points=tuple(
                    StartPoint(tensor=point.tensor) for point in options.additional_start_points
                ),
            ),
            inputs={
                "model": (
                    *inputs.whole(self._static("arcl", graph, branched=branched)),
                    *origin.weights[split.index],
                )
            },
            demand=demand("transform", origin.count[split.index]),
            target=label,
            graph=name,
            split=f"{split.index}/{split.count}",
        )

    def _convert(
        self, graph: GraphConfig, split: SplitConfig, label: str, case: MergedCase | None = None
    ) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self._origins[graph.ar]
        context, quantization = origin.context, origin.context.spec.quantization
        transformed = self._static("transform", graph, split, branched=case is not None)
        sources: Inputs = {"model": (*inputs.whole(transformed), *origin.weights[split.index])}
        if context.model.has_encodings:
            sources["encodings"] = inputs.encodings(context.source)
            # All tensors' names tell an entry of another part from one that nothing needs.
            sources["core"] = inputs.ingested("model.onnx", source=context.source)
        if context.calibrates:
            sources |= {"core": inputs.core(context.source), **self._calibration(graph)}
        sources |= of_quantized(self.context) if case is None else of_case(self.context, case)
        sources |= self._cache(graph, split)
        return Task(
            id=self.converted(graph, split, case),
            operation="convert",
            backend=Backend.HTP,
            config=ConvertHtpConfig(
                graph=graph,
                split=split,
                activation_bits=quantization.activation_bits,
                bias_bits=quantization.bias_bits,
                gaps=quantization.gaps,
                worn=() if case is None else case.alphas,
            ),
            inputs=sources,
            demand=demand("convert-htp", origin.count[split.index]),
            target=label,
            graph=name,
            split=f"{split.index}/{split.count}",
        )

    def _calibration(self, graph: GraphConfig) -> Inputs:
        """The text that gaps are calibrated with: a child's own, or the model's."""
        one = self.children.get(graph.ar)
        return inputs.calibration(MODEL if one is None or one.borrows else one.context.source)

    def _cache(self, graph: GraphConfig, split: SplitConfig) -> Inputs:
        """A graph of the model whose cache a child's goes on with, as it was converted."""
        if graph.ar not in self.children or split.first == split.last or self.context.stays_float:
            return {}
        beside = [one for one in self._grid.graphs if one.ar not in self.children]
        other = next((one for one in beside if one.cl == graph.cl), beside[0])
        file = f"{_part(graph_name(other.ar, other.cl), split)}.onnx"
        return {"cache": (Selection(self.converted(other, split, None), (file,)),)}

    def _static(
        self,
        operation: str,
        graph: GraphConfig,
        split: SplitConfig | None = None,
        *,
        branched: bool,
    ) -> TaskId:
        """Of a static graph, or of one with a branch at every linear."""
        name = graph_name(graph.ar, graph.cl)
        name_or_part = name if split is None else _part(name, split)
        folder = "adapters/" if branched else self._folder(graph)
        return TaskId(f"{operation}/{folder}{name_or_part}")

    def _folder(self, graph: GraphConfig) -> str:
        """Of a child's tasks in their ids."""
        one = self.children.get(graph.ar)
        return "" if one is None else f"{one.context.source}/"


def folder_of(case: MergedCase | None) -> str:
    """Whose the tasks are: a folder in their ids, which no part can be called like."""
    return "" if case is None else f"{case.name}/"


def _part(name: str, split: SplitConfig) -> str:
    return f"{name}_{split.index}_of_{split.count}"

"""A build in the vendor's words: settings collected here, run by the engine of `genai build`.

    builder = GenAIBuilderFactory.create("path/to/model", "HTP", cache_root="cache")
    builder.set_targets(["chipset:SM8750"])
    container = builder.build()

Keys, artifacts and revisions are those of `genai build` on the same store. Each setting becomes a
field of a GenAIBuild (`to_spec()`); one that has no meaning here raises `InvalidSpec`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from genai_builder import options as vendor
from genai_builder.gen_ai_api.builders.attached_model import AttachedModel
from genai_builder.gen_ai_api.containers.gen_ai_container import GenAIContainer, LLMContainer
from genai_builder.model_files import ModelFiles, find_model
from genai_builder.modules.lora.lora_config import LoraBuilderInputConfig, lora_content
from genai_builder.temporary import HeldFolder
from genai_cli.build.local_build import make_containers
from genai_cli.settings import read_settings
from genai_core.chips import parse as parse_chip
from genai_core.compile_options import merged
from genai_core.errors import InvalidSpec
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import GenAIBuild
from genai_core.kinds.child_model import Child
from genai_core.kinds.documents.reading import read_model, with_local_source
from genai_core.kinds.lora import QuantUpdatableMode
from genai_core.sources.lora_config import lora_of_config, lora_of_content

__all__ = ["GenAIBuilder", "GenAIBuilderCPU", "GenAIBuilderHTP"]

_REFUSED = {
    "speculative_config": "the server and `genai run` choose how to speculate",
    "embedding": "the embedding table is the model's",
    "embeddings": "the embedding table is the model's",
    "prepare_embedding_lut": "the embedding is computed by the first split",
    "skip_ar_conversion": "static graphs are always made from the core graph",
}
"""Setting of the vendor's -> why it has no meaning here."""

_MODES = {
    "none": QuantUpdatableMode.NONE.value,
    "adapter_only": QuantUpdatableMode.ADAPTER_ONLY.value,
    "all": QuantUpdatableMode.ALL.value,
}
"""The vendor's `quant_updatable_mode` -> spec.lora's."""

_OWN = frozenset({"parallel_build", "max_workers"})


class GenAIBuilder:
    """Settings of a build, and the build; made by `GenAIBuilderFactory.create`."""

    def __init__(self, model: ModelFiles, *, cache_root: str | os.PathLike[str] | None) -> None:
        self._model = model
        self._store = _place(cache_root) if cache_root else read_settings(os.environ).store
        self._fields: vendor.Fields = {}
        self._targets: list[str] = []
        self._lora: LoraBuilderInputConfig | None = None
        self._attached: list[AttachedModel] = []
        self.parallel_build = True
        """Tasks run side by side; False: one after the other."""
        self.max_workers: int | None = None
        """Tasks at once; None: what memory and cores bear."""

    def set_targets(self, targets: Sequence[str]) -> None:
        """Name the targets to build for.

        Args:
            targets: `chipset:SM8750`, `dsp_arch:v79;soc_model:69`, or a chip's name.

        Raises:
            UnknownTarget: No such chip.
            InvalidSpec: None is given, or alternatives, or one twice.
        """
        if isinstance(targets, str) or not targets:
            raise InvalidSpec(
                "expected a list", where="set_targets", remedy='write ["chipset:SM8750"]'
            )
        others = [text for text in targets if not isinstance(text, str)]
        if others:
            raise InvalidSpec(
                f"expected text, not {others[0]!r}"[:200],
                where="set_targets",
                remedy='write ["chipset:SM8750"]',
            )
        names = [self._target(text) for text in targets]
        if len(set(names)) != len(names):
            raise InvalidSpec("a target is listed twice", where="set_targets", remedy="keep one")
        self._targets = names

    def _target(self, text: str) -> str:
        if "|" in text:
            raise InvalidSpec(
                "alternatives are not supported",
                where=f"set_targets {text}",
                remedy="name each as a target of its own",
            )
        return parse_chip(text).name.lower()

    def set_transformation_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set options of static graphs, splits and heads, by dotted names or sections.

        Raises:
            InvalidSpec: An option that is unknown, or has no meaning here.
        """
        self._fields |= vendor.transformation(options)

    def set_conversion_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set options of the conversion, e.g. `{"float_fallback": True}`.

        Raises:
            InvalidSpec: An option that is unknown, or asks for another precision.
        """
        self._fields |= vendor.conversion(options)

    def set_compilation_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set the compiler's options, e.g. `{"graphs.vtcm_size_in_mb": 8}`.

        Those of an earlier call stay, as with the other stages' options.

        Raises:
            InvalidSpec: An option that is unknown, or cannot be passed to the compiler.
        """
        fields = vendor.compilation(options)
        path = ("compilation", "options")
        if path in fields:
            fields[path] = merged(self._fields.get(path, {}), fields[path])
        self._fields |= fields

    @property
    def weight_sharing(self) -> bool:
        """One copy of the weights for all graphs of a split."""
        return bool(self._fields.get(("compilation", "weightSharing"), True))

    @weight_sharing.setter
    def weight_sharing(self, value: bool) -> None:
        self._fields["compilation", "weightSharing"] = vendor.boolean(value, "weight_sharing")

    @property
    def multi_graph(self) -> bool:
        """Context lengths 512, 1024, 2048, 3072 and 4096."""
        return bool(self._fields.get(("graphs", "multiContext"), False))

    @multi_graph.setter
    def multi_graph(self, value: bool) -> None:
        self._fields["graphs", "multiContext"] = vendor.boolean(value, "multi_graph")

    @property
    def native_kv(self) -> bool:
        """The cache in the processor's own layout; every AR must be 32, 64, 128 or 256."""
        return bool(self._fields.get(("compilation", "nativeKV"), False))

    @native_kv.setter
    def native_kv(self, value: bool) -> None:
        self._fields["compilation", "nativeKV"] = vendor.boolean(value, "native_kv")

    @property
    def encodings_path(self) -> str | None:
        """AIMET's encodings, below the model's folder; None: the only ones there."""
        found: str | None = self._fields.get(("model", "encodings"))
        return found

    @encodings_path.setter
    def encodings_path(self, value: str | os.PathLike[str] | None) -> None:
        path = ("model", "encodings")
        if value is None:
            self._fields.pop(path, None)
        else:
            self._fields[path] = self._model.inside(Path(value), "encodings_path")

    @property
    def lora_config(self) -> LoraBuilderInputConfig | None:
        """Adapters of the containers."""
        return self._lora

    @lora_config.setter
    def lora_config(self, value: LoraBuilderInputConfig | None) -> None:
        path = ("lora",)
        if value is None:
            self._fields.pop(path, None)
        else:
            self._fields[path] = self._adapters(value)  # refused where it is set
        self._lora = value

    def _adapters(self, config: LoraBuilderInputConfig) -> dict[str, Any]:
        """What spec.lora says for it.

        Raises:
            InvalidSpec: It cannot be read, or names what is not there.
        """
        root = self._model.source
        if config.lora_config_obj is not None:
            content = lora_content(config.lora_config_obj)
            found = lora_of_content(
                content, root, root / "lora_config.yaml", where="lora_config_obj"
            )
        else:
            name = self._model.inside(Path(str(config.lora_config_path)), "lora_config_path")
            found = lora_of_config(root, name)
        if config.create_lora_graph != found.get("createGraph", True):
            raise InvalidSpec(
                "these adapters are weights of inputs that the model has"
                if config.create_lora_graph
                else "these adapters are PEFT folders, for which branches are made",
                where="create_lora_graph",
                remedy=f"set it to {not config.create_lora_graph}",
            )
        return found

    def __setattr__(self, name: str, value: object) -> None:
        """Set a setting.

        Raises:
            InvalidSpec: One of the vendor's that has no meaning here.
            AttributeError: One that neither has: what is misspelt would do nothing.
        """
        if name in _REFUSED:
            if value is None or value is False:
                return  # it asks for nothing
            raise InvalidSpec(f"not supported: {_REFUSED[name]}", where=name, remedy="leave it out")
        if not name.startswith("_") and name not in _OWN and not hasattr(type(self), name):
            raise AttributeError(f"a builder has no setting {name!r}")
        super().__setattr__(name, value)

    def attach_model_for_arn(
        self,
        arn: int,
        model_path: str | os.PathLike[str],
        encodings_path: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> AttachedModel:
        """Take a model of its own for the graphs of one AR.

        Args:
            arn: One of the build's ARs.
            model_path: A folder, or an ONNX file.
            encodings_path: AIMET's encodings, in the model's folder; None: the only ones there.
            name: One word that plan and status call it by; None: `attached_ar<arn>`.

        Returns:
            Its settings: what is not set there is the builder's.

        Raises:
            BadModel: There is no such file or folder.
            InvalidSpec: That AR has one, or a value is none that a build takes.
        """
        number = vendor.number(arn, "attach_model_for_arn arn")
        if any(one.arn == number for one in self._attached):
            raise InvalidSpec(
                f"AR {number} has a model of its own already",
                where="attach_model_for_arn",
                remedy="attach one for each AR",
            )
        files = find_model(model_path, config_path=None, tokenizer_path=None)
        attached = AttachedModel(number, files, name=name)
        attached.encodings_path = encodings_path
        read_model(Child, attached.to_child())
        self._attached.append(attached)
        return attached

    def to_spec(self) -> dict[str, Any]:
        """The GenAIBuild that does the same: apiVersion, kind, metadata, spec.

        Written to a YAML file, `genai build -f FILE` builds it here, and `--remote` on a cluster.

        Raises:
            InvalidSpec: No target is set, or settings contradict one another.
        """
        if not self._targets:
            raise InvalidSpec(
                "no target is set", where="build", remedy='call set_targets(["chipset:SM8750"])'
            )
        spec: dict[str, Any] = {"model": {"source": str(self._model.source)}}
        if self._model.onnx is not None:
            spec["model"]["onnx"] = self._model.onnx
        spec["targets"] = list(self._targets)
        fields = dict(self._fields)
        if self._lora is not None:
            fields["lora",] = self._adapters(self._lora)  # it may have been changed since
        if self._attached:
            fields["children",] = [attached.to_child() for attached in self._attached]
        for path, value in fields.items():
            here = spec
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = deepcopy(value)  # whoever changes the document changes no builder
        document = {
            "apiVersion": API_VERSION,
            "kind": "GenAIBuild",
            "metadata": {"name": self._model.name},
            "spec": spec,
        }
        read_model(GenAIBuild, document)
        return document

    def build(self, *, remote: bool = False, namespace: str | None = None) -> GenAIContainer:
        """Run whatever is not cached; returns the first target's container.

        Args:
            remote: Apply it to the kubeconfig's cluster, wait for its end, and pull the container.
            namespace: Of the cluster; None: the kubeconfig's.

        Raises:
            GenAIError: What `genai build` ends with: where it is, what is wrong, what to do.
        """
        return next(iter(self.build_all(remote=remote, namespace=namespace).values()))

    def build_all(
        self, *, remote: bool = False, namespace: str | None = None
    ) -> dict[str, GenAIContainer]:
        """Target -> container, of all targets; see `build`."""
        build = with_local_source(read_model(GenAIBuild, self.to_spec()), Path.cwd())
        # The containers' files live as long as one of the containers does.
        folder = HeldFolder()
        if remote:
            from genai_builder.remote import build_and_pull

            paths = build_and_pull(build, folder.path, namespace=namespace)
        else:
            made = make_containers(
                build, store=self._store, read_from=(), output=folder.path, jobs=self._jobs()
            )
            made.raise_failure()
            paths = {target: delivered.path for target, delivered in made.containers.items()}
        return {target: LLMContainer(paths[target], folder=folder) for target in self._targets}

    def _jobs(self) -> int | None:
        if not vendor.boolean(self.parallel_build, "parallel_build"):
            return 1
        if self.max_workers is None:
            return None
        jobs = vendor.number(self.max_workers, "max_workers")
        if jobs < 1:
            raise InvalidSpec(f"expected at least 1, not {jobs}", where="max_workers")
        return jobs


def _place(store: str | os.PathLike[str]) -> str:
    """A store's address, which no later change of the working folder leads elsewhere."""
    text = os.fspath(store)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


class GenAIBuilderHTP(GenAIBuilder):
    """Builds for Snapdragon's tensor processor."""

    def _adapters(self, config: LoraBuilderInputConfig) -> dict[str, Any]:
        return super()._adapters(config) | {
            "quantUpdatableMode": _MODES[config.quant_updatable_mode],
            "alphaTensorName": config.alpha_tensor_name,
        }


class GenAIBuilderCPU(GenAIBuilder):
    """Builds for the CPU: one container for any machine."""

    def __init__(self, model: ModelFiles, *, cache_root: str | os.PathLike[str] | None) -> None:
        super().__init__(model, cache_root=cache_root)
        self._targets = ["cpu"]

    def _target(self, text: str) -> str:
        if text.lower() != "cpu":
            raise InvalidSpec(
                f"{text} is no target of the CPU backend",
                where="set_targets",
                remedy='leave set_targets out, or create the builder with backend_type="HTP"',
            )
        return "cpu"

"""The vendor's way through the API: factory, targets, build, save, load, run, replay a stage."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import genai_builder as qairt
from genai_builder.api.compiler.config import CompileConfig
from genai_builder.gen_ai_api.containers.gen_ai_container import GenAIContainer, LLMContainer
from genai_builder.gen_ai_api.executors.gen_ai_executor import (
    GenAIExecutor,
    GenerationExecutionResult,
)
from genai_builder.gen_ai_api.gen_ai_builder_factory import GenAIBuilderFactory
from genai_builder.modules.lora.lora_config import (
    AdapterConfig,
    AdapterRunConfig,
    LoraBuilderInputConfig,
    LoraConfig,
    UseCaseInputConfig,
    UseCaseRunConfig,
    serialize_lora_input_config,
)
from genai_core.canonical import digest_file
from genai_core.errors import BadInput, BadModel, InvalidSpec, UnknownTarget
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "architectures" / "llama"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small float model in the vendor's layout: OUT/base/onnx, config and tokenizer in OUT."""
    out = tmp_path_factory.mktemp("exports")
    graph = out / "base" / "onnx"
    graph.mkdir(parents=True)
    for path in MODEL.iterdir():
        shutil.copy(path, graph if path.suffix in {".onnx", ".data"} else out)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def container(model: Path, store: Path) -> GenAIContainer:
    builder = GenAIBuilderFactory.create(
        model / "base" / "onnx", "CPU", cache_root=store, config_path=model
    )
    builder.set_conversion_options({"float_fallback": True})
    return builder.build()


def test_build_gives_the_revision_of_genai_build(
    container: GenAIContainer, model: Path, store: Path, tmp_path: Path
) -> None:
    import yaml

    from genai_cli.testing import Program

    builder = GenAIBuilderFactory.create(
        model / "base" / "onnx", "CPU", cache_root=store, config_path=model
    )
    builder.set_conversion_options({"float_fallback": True})
    (tmp_path / "build.yaml").write_text(yaml.safe_dump(builder.to_spec()))
    ended = Program(tmp_path)("build", "-f", "build.yaml", "--store", str(store), "--json")
    told = ended.json
    assert told["containers"]["cpu"]["revision"] == container.revision
    assert told["tasks"]["run"] == 0


def test_a_container_is_saved_and_loaded(container: GenAIContainer, tmp_path: Path) -> None:
    saved = container.save(tmp_path / "out" / "llama")
    loaded = GenAIContainer.load(saved)
    assert isinstance(loaded, LLMContainer)
    assert loaded.revision == container.revision
    assert loaded.metadata.target.name == "cpu"
    with pytest.raises(BadInput, match="it exists"):
        container.save(saved)
    assert container.save(saved, exist_ok=True) == saved
    assert GenAIContainer.load(saved).revision == container.revision
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["llama"], "a draft is left"


def test_save_replaces_nothing_that_is_no_container(
    container: GenAIContainer, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="not a container"):
        container.save(tmp_path, exist_ok=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_perplexity_is_that_of_genai_evaluate(container: GenAIContainer, tmp_path: Path) -> None:
    import numpy as np

    from genai_runtime.evaluate import evaluate

    pieces = np.random.default_rng(3).integers(0, 100, (3, 16))
    np.save(tmp_path / "tokens.npy", pieces)
    session = open_session(containers.load(container.path))
    wanted = evaluate(session, pieces).perplexity
    session.close()
    with container.get_executor() as executor:
        found = executor.evaluate_perplexity(tmp_path / "tokens.npy", engine_role="target")
    assert found == wanted
    assert math.isfinite(found)
    with pytest.raises(BadInput, match="no draft"):
        container.get_executor().evaluate_perplexity("tokens.npy", engine_role="draft")
    with pytest.raises(BadInput, match="this machine only"):
        container.get_executor(device=object())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> GenAIContainer:
    """The example with its two adapters, built by the command line."""
    from genai_cli.testing import Program

    folder = tmp_path_factory.mktemp("adapters")
    example = ROOT / "examples" / "tiny-llama" / "adapters.yaml"
    ended = Program(folder)("build", "-f", str(example), "--set",
                            "quantization.cpuPrecision=Int8")  # fmt: skip
    assert ended.code == 0, ended.err
    return GenAIContainer.load(folder / "containers" / "tiny-llama-adapters")


def test_generate_uses_the_adapters_of_its_call(adapters: GenAIContainer) -> None:
    """The vendor's example, and the same tokens as `genai run` gives with these adapters."""
    from genai_runtime.executor.rows import AdapterUse
    from genai_runtime.generate import generate

    llm: GenAIExecutor = adapters.get_executor(None, clean_up=False)
    prompt, few = "#ifndef ", {"max_new_tokens": 12}
    headers = UseCaseRunConfig(
        use_case_name="headers",
        adapters=[AdapterRunConfig(adapter_name="c-headers", alpha=1.0)],
    )
    both = UseCaseRunConfig(
        use_case_name="loud-headers",
        adapters=[
            AdapterRunConfig(adapter_name="c-headers", alpha=0.5),
            AdapterRunConfig(adapter_name="uppercase", alpha=0.5),
        ],
    )
    opened = containers.load(adapters.path)
    tokenizer = opened.tokenizer()
    assert tokenizer is not None
    seen = set()
    for config in (None, headers, both, None):
        result: GenerationExecutionResult = llm.generate(
            prompt, generation_config=few, lora_config=config
        )
        worn = [
            AdapterUse(run.adapter_name, run.alpha) for run in (config.adapters if config else [])
        ]
        session = open_session(opened, worn=worn)
        alone = generate(
            session, tokenizer.encode(prompt), max_tokens=12, stop_tokens=opened.stop_tokens()
        )
        session.close()
        assert result.tokens == alone.tokens
        assert result.generated_text == tokenizer.decode(alone.tokens)
        assert result.metrics.generated_tokens == len(alone.tokens)
        seen.add(result.tokens)
    assert len(seen) == 3, "each says something else"
    with pytest.raises(BadInput, match="no adapter nobody"):
        llm.generate(prompt, lora_config=UseCaseRunConfig(
            use_case_name="x", adapters=[AdapterRunConfig(adapter_name="nobody")]))  # fmt: skip
    with pytest.raises(BadInput, match="max_tokens: unknown"):
        llm.generate(prompt, generation_config={"max_tokens": 3})
    llm.clean_environment()


def test_generation_config_is_greedy_unless_it_asks_for_a_draw(adapters: GenAIContainer) -> None:
    with adapters.get_executor() as llm:
        greedy = llm.generate("def ", generation_config={"max_new_tokens": 8, "top_k": 50})
        again = llm.generate(
            "def ", generation_config={"max_new_tokens": 8, "do_sample": False, "temperature": 2.0}
        )
        drawn = {
            llm.generate("def ", generation_config={
                "max_new_tokens": 8, "do_sample": True, "temperature": 2.0, "seed": seed}).tokens
            for seed in range(3)
        }  # fmt: skip
    assert greedy.tokens == again.tokens
    assert len(drawn) > 1


@pytest.mark.qnn
def test_a_stage_is_replayed_from_its_sidecar(model: Path, store: Path, tmp_path: Path) -> None:
    """The lines of the vendor's overview, as they stand there."""
    builder = GenAIBuilderFactory.create(
        model / "base" / "onnx", "HTP", cache_root=store, config_path=model
    )
    builder.set_conversion_options({"float_fallback": True})
    builder.set_targets(["chipset:SM8750"])
    builder.set_transformation_options(
        {"arn_cl_options": {"auto_regression_number": [8], "context_length": [32]},
         "split_model.num_splits": 1}
    )  # fmt: skip
    built = builder.build()

    (folder,) = {path.parent for path in store.glob("*/compile_*/*.bin")}
    (dlc,) = store.glob("*/convert_*/*.dlc")
    with (folder / "builder_cache_info.json").open() as f:
        compile_info = json.load(f)
    assert compile_info["config"]["backend"] == "BackendType.HTP"
    assert compile_info["config"]["soc_details"] == "chipset:SM8750"

    split = qairt.load(str(dlc))
    config = CompileConfig(backend="HTP", soc_details="chipset:SM8750")
    compiled = qairt.compile(split, config=config)
    compiled.save(str(tmp_path / "my_split_recompiled.bin"))
    (binary,) = folder.glob("*.bin")
    assert digest_file(tmp_path / "my_split_recompiled.bin") == digest_file(binary)
    assert digest_file(built.path / binary.name) == digest_file(binary)

    with pytest.raises(ValueError, match="unknown settings"):
        CompileConfig.model_validate(compile_info["config"])
    CompileConfig.model_config["extra"] = "allow"
    try:
        config = CompileConfig.model_validate(compile_info["config"])
        again = qairt.compile(split, config=config)
    finally:
        CompileConfig.model_config["extra"] = "forbid"
    assert again.blob == compiled.blob
    other = qairt.compile(split, config=CompileConfig(soc_details="chipset:SM8850"))
    assert other.blob != compiled.blob
    with pytest.raises(UnknownTarget):
        CompileConfig(soc_details="chipset:SM1")
    with pytest.raises(BadInput, match="there is no such file"):
        qairt.load(store / "a.dlc")


def test_build_raises_what_genai_build_would_say(model: Path, tmp_path: Path) -> None:
    for path in MODEL.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    builder = GenAIBuilderFactory.create(tmp_path, "CPU", cache_root=tmp_path / "store")
    builder.set_conversion_options({"float_fallback": True})
    with pytest.raises(BadModel, match=r"model\.onnx"):
        builder.build()


def test_lora_config_builds_the_adapters_of_the_vendor_s_classes(
    adapters: GenAIContainer, tmp_path: Path
) -> None:
    """By object and by path: what the example's adapters.yaml says."""
    example = ROOT / "examples" / "tiny-llama"
    source = shutil.copytree(example / "model", tmp_path / "model")
    folders = {"c-headers": "c-headers-r8", "uppercase": "uppercase-r16"}
    for folder in folders.values():
        shutil.copytree(example / "adapters" / folder, source / "adapters" / folder)
    files = {
        name: f"{source}/adapters/{folder}/adapter_config.json" for name, folder in folders.items()
    }
    (source / "mapping.json").write_text("{}")
    config = LoraConfig(
        adapter=[AdapterConfig(name=name, adapter_lora_config=[f]) for name, f in files.items()],
        attach_point_onnx_mapping=f"{source}/mapping.json",
        use_cases=[
            UseCaseInputConfig(
                name="loud-headers", adapter_names=list(folders), adapter_alphas=[0.5, 0.5],
                model="model.onnx", encodings="model.encodings",
            )
        ],
    )  # fmt: skip
    case = config.use_cases[0]
    builder = GenAIBuilderFactory.create(source, "CPU")
    builder.lora_config = LoraBuilderInputConfig(lora_config_obj=config, alpha_tensor_name="alpha")
    by_object = builder.to_spec()["spec"]["lora"]
    assert [one["name"] for one in by_object["adapters"]] == ["c-headers", "uppercase"]
    assert by_object["useCases"] == [
        {"name": "loud-headers", "adapters": [{"name": "c-headers", "alpha": "0.5"},
                                              {"name": "uppercase", "alpha": "0.5"}]}
    ]  # fmt: skip
    case.adapter_alphas = [0.25, 0.5]
    changed = builder.to_spec()["spec"]["lora"]["useCases"][0]["adapters"]
    assert changed[0]["alpha"] == "0.25", "it counts as it is when it builds"
    case.adapter_alphas = [0.5, 0.5]
    path = serialize_lora_input_config(config, source / "lora")
    builder.lora_config = LoraBuilderInputConfig(lora_config_path=path, alpha_tensor_name="alpha")
    assert builder.to_spec()["spec"]["lora"] == by_object
    assert {a["name"] for a in by_object["adapters"]} == set(adapters._opened.adapters().adapters)
    with pytest.raises(InvalidSpec, match="create_lora_graph: these adapters are PEFT folders"):
        builder.lora_config = LoraBuilderInputConfig(
            lora_config_path=path, alpha_tensor_name="alpha", create_lora_graph=False
        )
    builder.lora_config = None
    assert "lora" not in builder.to_spec()["spec"]


def test_lora_config_says_the_mode_and_the_input_of_a_snapdragon_build(tmp_path: Path) -> None:
    example = ROOT / "examples" / "tiny-llama"
    source = shutil.copytree(example / "model", tmp_path / "model")
    shutil.copytree(example / "adapters" / "c-headers-r8", source / "c")
    (source / "mapping.json").write_text("{}")
    config = LoraConfig(
        adapter=[AdapterConfig(name="c", adapter_lora_config=f"{source}/c/adapter_config.json")],
        attach_point_onnx_mapping=f"{source}/mapping.json",
        use_cases=[
            UseCaseInputConfig(
                name="mild", adapter_names=["c"], adapter_alphas=[0.5],
                model="model.onnx", encodings="model.encodings",
            )
        ],
    )  # fmt: skip
    path = serialize_lora_input_config(config, source / "lora")
    builder = GenAIBuilderFactory.create(source, "HTP")
    builder.set_targets(["chipset:SM8750"])
    for given, mode in (("none", "None"), ("adapter_only", "AdapterOnly"), ("all", "All")):
        found = []
        for one in ({"lora_config_obj": config}, {"lora_config_path": path}):
            builder.lora_config = LoraBuilderInputConfig.model_validate(
                {**one, "alpha_tensor_name": "strength", "quant_updatable_mode": given}
            )
            found.append(builder.to_spec()["spec"]["lora"])
        assert found[0] == found[1]
        assert found[0]["quantUpdatableMode"] == mode
        assert found[0]["alphaTensorName"] == "strength"
        assert [one["name"] for one in found[0]["adapters"]] == ["c"]

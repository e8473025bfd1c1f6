"""`genai adapter`: a later adapter is files, with the revision of a build that had it at first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from adapter_files import write_peft
from builds import EXAMPLE, ROOT, Built
from safetensors.numpy import load_file, save_file

PEFT = EXAMPLE / "adapters"


@pytest.fixture(scope="module")
def added(built: Built) -> Path:
    """The example's cpu container with both adapters, one after the other."""
    one, two = built.output / "one", built.output / "two"
    for given, source, name, out in (
        (built.container("cpu"), "c-headers-r8", "c-headers", one),
        (one, "uppercase-r16", "uppercase", two),
    ):
        built.program.ok("adapter", "add", given, PEFT / source, "--name", name, "-o", out)
    return two


def spec_without_use_cases(folder: Path) -> Path:
    document = yaml.safe_load((EXAMPLE / "adapters.yaml").read_text())
    spec = document["spec"]
    spec["model"]["source"] = str(EXAMPLE / "model")
    for adapter in spec["lora"]["adapters"]:
        adapter["source"] = str(EXAMPLE / adapter["source"])
    del spec["lora"]["useCases"]
    path = folder / "build.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_add_gives_the_revision_of_a_build_when_the_adapters_are_the_same(
    built: Built, added: Path, tmp_path: Path
) -> None:
    answer = built.build("-f", spec_without_use_cases(tmp_path))["containers"]["cpu"]
    manifest = json.loads((added / "manifest.json").read_bytes())
    whole = Path(answer["path"])
    assert (added / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert manifest["base"] == built.answer["containers"]["cpu"]["revision"]
    assert built.program.ok("verify", added, "--json").json["revision"] == answer["revision"]
    stages = json.loads((added / "report.json").read_bytes())["stages"]
    assert stages["lora_import/uppercase"]["drift"] < 1e-12


def test_added_adapter_is_worn_and_the_given_container_stays(built: Built, added: Path) -> None:
    prompt = ("--prompt", "THIS SOFTWARE IS", "--max-tokens", "8", "--json")
    plain = built.program.ok("run", added, *prompt).json["text"]
    assert built.program.ok("run", built.container("cpu"), *prompt).json["text"] == plain
    worn = built.program.ok("run", added, *prompt, "--adapter", "uppercase").json["text"]
    assert worn.isupper()
    assert worn != plain
    assert not (built.container("cpu") / "adapters").exists()


def test_remove_gives_the_revision_before_when_it_takes_the_last_one(
    built: Built, added: Path, tmp_path: Path
) -> None:
    program = built.program
    program.ok("adapter", "remove", added, "uppercase", "-o", tmp_path / "one")
    one = program.ok("verify", tmp_path / "one", "--json").json
    assert one["revision"] == built.program.ok("verify", built.output / "one", "--json").json[
        "revision"
    ]  # fmt: skip
    program.ok("adapter", "remove", tmp_path / "one", "c-headers", "-o", tmp_path / "none")
    none = program.ok("verify", tmp_path / "none", "--json").json
    assert none["revision"] == built.answer["containers"]["cpu"]["revision"]
    before = json.loads((built.container("cpu") / "report.json").read_bytes())
    assert json.loads((tmp_path / "none" / "report.json").read_bytes()) == before


def test_list_shows_adapters_with_ranks(built: Built, added: Path) -> None:
    out = built.program.ok("adapter", "list", added).out
    assert "c-headers     8       12  126 kB" in out
    said = built.program.ok("adapter", "list", added, "--json").json
    assert said["adapters"]["uppercase"]["rank"] == 16
    assert "carries no adapters" in built.program.ok("adapter", "list", built.container("cpu")).out


@pytest.mark.parametrize(
    ("container", "arguments", "words"),
    [
        ("two", ["--name", "uppercase"], "has an adapter uppercase already"),
        ("two", ["--name", "base"], "base means the model without adapters"),
        ("two", ["--name", "Up Per"], "'Up Per' is no name"),
        ("tiny-llama/sm8750", [], "and its graphs take no adapters"),
    ],
)
def test_add_refuses_what_cannot_be_called_or_carried(
    built: Built, added: Path, tmp_path: Path, container: str, arguments: list[str], words: str
) -> None:
    del added
    ran = built.program(
        "adapter", "add", built.output / container, PEFT / "uppercase-r16",
        "-o", tmp_path / "out", *arguments,
    )  # fmt: skip
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_add_refuses_an_adapter_of_another_model_with_both_sizes(
    built: Built, tmp_path: Path
) -> None:
    other = shutil.copytree(PEFT / "c-headers-r8", tmp_path / "other")
    weights = other / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name in list(tensors)[:6]:
        half = name.replace("lora_B", "lora_A")
        tensors[half] = tensors[half][:, :96].copy()
    save_file(tensors, weights)
    ran = built.program(
        "adapter", "add", built.container("cpu"), other, "-o", tmp_path / "out"
    )  # fmt: skip
    assert ran.code == 2
    assert " of its 12 modules stand for no linear of the model" in ran.errors[0]
    assert " x 96; the nearest linear is " in ran.errors[0]
    assert ", 192 x 192)" in ran.errors[0] or ", 64 x 192)" in ran.errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", [0, -1, "x", 1e9])
def test_add_says_what_is_wrong_with_a_file_when_no_store_could_mend_it(
    built: Built, tmp_path: Path, alpha: object
) -> None:
    broken = shutil.copytree(PEFT / "c-headers-r8", tmp_path / "broken")
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    ran = built.program(
        "adapter", "add", built.container("cpu"), broken, "-o", tmp_path / "out",
        "--store", tmp_path / "empty",
    )  # fmt: skip
    assert ran.code == 2
    assert ran.errors[0] == (
        f"error: adapter_config.json: lora_alpha: {alpha} is no positive number up to 1e+06; save "
        "the adapter again with PEFT"
    )


@pytest.mark.parametrize("target", ["secret", "/dev/zero"])
def test_add_copies_nothing_from_beside_the_container_when_a_link_leads_there(
    built: Built, tmp_path: Path, target: str
) -> None:
    """No manifest vouches for a report, so it could be a key of whoever adds the adapter."""
    (tmp_path / "secret").write_text("key")
    hostile = shutil.copytree(built.container("cpu"), tmp_path / "hostile")
    (hostile / "report.json").unlink()
    (hostile / "report.json").symlink_to(tmp_path / target)
    adapter, out = PEFT / "c-headers-r8", tmp_path / "out"
    ran = built.program("adapter", "add", hostile, adapter, "--name", "more", "-o", out)
    assert ran.code == 2
    assert "report.json: it is a link that leaves the container" in ran.errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile", "secret"]


def test_add_writes_nothing_into_the_container_that_it_reads(built: Built, added: Path) -> None:
    for out in (added, added / "inner"):
        ran = built.program("adapter", "add", added, PEFT / "uppercase-r16", "-o", out)
        assert ran.code == 2
        assert "it is the container that is read" in ran.errors[0]
    assert built.program("verify", added).code == 0


@pytest.fixture(scope="module")
def fused(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with fused projections in a store of its own: its container's names tell nothing."""
    folder = tmp_path_factory.mktemp("fused")
    sizes = {f"model.layers.{n}.self_attn.qkv_proj": (192, 64) for n in (0, 1)}
    write_peft(folder / "fused-r4", sizes)
    built.program.ok(
        "build", ROOT / "tests/fixtures/architectures/phi3", "--target", "cpu", "--gaps", "Float",
        "--cl", "32", "--store", folder / "store", "--output", folder / "out", "--name", "phi3",
    )  # fmt: skip
    return folder, folder / "out" / "phi3" / "cpu"


def test_add_asks_the_store_when_the_names_do_not_tell(
    built: Built, fused: tuple[Path, Path]
) -> None:
    folder, container = fused
    command = ("adapter", "add", container, folder / "fused-r4", "-o", folder / "new")
    ran = built.program(*command)
    assert ran.code == 2
    assert "2 of its 2 modules stand for no linear" in ran.errors[0]
    assert "--store" in ran.errors[0]
    ran = built.program(*command, "--store", folder / "nowhere")
    assert ran.code == 2
    assert "there is no store" in ran.errors[0]
    said = built.program.ok(*command, "--store", folder / "store", "--json").json
    assert said["linears"] == 6, "query, key and value of two layers"
    assert said["base"] == built.program.ok("verify", container, "--json").json["revision"]

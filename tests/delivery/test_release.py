"""A release is one version, holds what is needed, and installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import release  # noqa: E402

ROOMS = ("core", "planner", "runtime", "stages", "cli", "operator")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    release.distributions(out)
    return out


def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def test_wheel_holds_every_room_and_nothing_of_the_repository(dist: Path) -> None:
    with zipfile.ZipFile(wheel(dist)) as opened:
        names = opened.namelist()
    tops = {name.split("/")[0] for name in names}
    version = release.version()
    assert {f"genai_{room}" for room in ROOMS} <= tops
    assert tops <= {f"genai_{room}" for room in (*ROOMS, "serving", "builder")} | {
        f"genai_operator-{version}.dist-info"
    }
    for room in ROOMS:
        assert f"genai_{room}/py.typed" in names


def test_wheel_runs_when_it_alone_is_installed(dist: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel(dist))], check=True, cwd=tmp_path)
    code = (
        "import genai_cli, genai_operator, genai_stages, importlib.metadata as m;"
        "print(genai_cli.__file__); print(genai_operator.__file__); print(genai_stages.__file__);"
        "print(m.version('genai-operator'))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *places, version = ran.stdout.split()
    assert all(Path(place).is_relative_to(site) for place in places), "the checkout was imported"
    assert version == release.version()
    ran = subprocess.run(
        [sys.executable, "-m", "genai_cli", "--version"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == release.version()


def test_same_commit_makes_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    release.distributions(tmp_path)
    assert wheel(tmp_path).read_bytes() == wheel(dist).read_bytes()


def test_charts_render_the_same_when_they_are_packaged(
    tmp_path: Path, helm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_program: str, *arguments: str) -> None:
        ran = helm(*arguments)
        assert ran.returncode == 0, ran.stderr

    monkeypatch.setattr(release, "_run", run)
    packaged = release.charts(tmp_path, "helm", release.version())
    for chart, archive in zip(release.CHARTS, packaged, strict=True):
        texts = [
            helm("template", "genai", str(place), "--kube-version", "1.34.0").stdout
            for place in (ROOT / "charts" / chart, archive)
        ]
        assert texts[0] == texts[1] != ""


def test_check_versions_names_the_chart_when_one_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    release.check_versions(release.version())
    with pytest.raises(SystemExit, match=r"genai-operator-crds/Chart.yaml: version is .* says 9.9"):
        release.check_versions("9.9")


def test_listing_names_an_image_by_the_digest_that_registries_serve(tmp_path: Path) -> None:
    index = {"schemaVersion": 2, "manifests": [{"digest": "sha256:" + "a" * 64}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    archive = tmp_path / "genai-stages-1.0.oci.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "index.json", "index.json")
    (entry,) = release.listing([archive], "1.0")["files"]
    assert entry["image"] == "sha256:" + "a" * 64
    assert entry["size"] == archive.stat().st_size


def test_every_image_of_a_release_is_a_target_of_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for target in release.IMAGES:
        assert f" AS {target}\n" in text
    values = yaml.safe_load((ROOT / "charts/genai-operator/values.yaml").read_text())
    parts = (values, values["stages"], values["serving"])
    names = {part["image"]["repository"] for part in parts}
    assert names == set(release.IMAGES.values())

"""Names and sizes of a bucket's listing, which whoever runs the server makes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel, InvalidSpec
from genai_core.sources.encoding_bits import weight_bits
from genai_core.sources.resolved import ListedFile, ResolveFile
from genai_core.store.address import ANONYMOUS, parse_address
from genai_core.store.s3.objects import Listed
from genai_core.store.s3.source_folder import S3Source
from genai_stages.worker import resolve as resolving

QUESTION = ResolveFile(uri="s3://buc/m", model={}, quantization={})


@pytest.mark.parametrize(
    "names",
    [
        ["../x"],
        ["/etc/passwd"],
        ["a/../../x"],
        ["a//b"],
        ["a\nb"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["n" * 256],
        ["d/" * 3000 + "f"],
    ],
)
def test_resolve_names_the_object_when_a_listing_makes_no_folder(
    tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    listing = {name: ListedFile(size=1, tag="t") for name in names}
    with pytest.raises(InvalidSpec) as raised:
        resolving._inspect(QUESTION, None, listing, tmp_path / "folder")  # type: ignore[arg-type]
    assert raised.value.remedy == "rename it"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("size", [-1, 1 << 60])
def test_list_refuses_sizes_that_no_object_has(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = S3Source(parse_address("s3://buc/m?endpoint=https://s3.example"), ANONYMOUS)

    def listed(**_: Any) -> list[Listed]:
        return [Listed("model.onnx", size, None, "t")]  # type: ignore[arg-type]

    monkeypatch.setattr(source._objects, "list", listed)
    with pytest.raises(BadModel, match="which no object has"):
        source.list()


def test_weight_bits_passes_over_a_width_of_ten_thousand_digits(tmp_path: Path) -> None:
    file = tmp_path / "x.encodings"
    file.write_text('{"param_encodings": {"w": [{"bitwidth": ' + "9" * 10_000 + "}]}}")
    assert weight_bits(file) is None

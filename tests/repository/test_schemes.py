"""Which kinds of addresses there are, the store and the sources know: others ask them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "planner", "runtime", "stages", "serving", "cli", "builder", "operator")
KNOW = {
    "core/genai_core/store/address.py",
    "core/genai_core/sources/source_address.py",
    "core/genai_core/kinds/definitions/defined_kinds.py",  # what a cluster takes: its CEL
}
LOOKS = re.compile(r"""startswith\(\(?["'](s3|https|pvc)://|[!=]= ["'](s3|pvc)["']""")


def test_only_their_own_modules_know_schemes_of_addresses() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if str(path.relative_to(ROOT)) not in KNOW
        for line in path.read_text(encoding="utf-8").splitlines()
        if LOOKS.search(line)
    }
    assert len(files) > 300
    assert found == set(), "ask is_bucket, bucket_of, is_archive or is_volume"


@pytest.mark.parametrize("line", ['x.startswith("s3://")', "x.startswith(('pvc://',", 'a == "s3"'])
def test_looks_finds_a_scheme_that_is_looked_for(line: str) -> None:
    assert LOOKS.search(line)

"""What llm-comply's openai-chat suite says of the server.

The suite names no temperature, so the model is made greedy. Three of its cases end as we mean them
to (docs/serving.md).

    make judge-comply
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

from judges.environments import FOLDER, environment
from judges.example_server import EXAMPLE, genai, served

GREEDY = {"temperature": 0.0}
ON_PURPOSE = {
    "chat-error-handling": "a body without a model means the one that is served",
    "chat-tool-calling": "a chat template that shows no tools gets none: they are refused by name",
    "chat-image-input": "a container without an encoder of pictures refuses them by name",
}


def main() -> int:
    """Print each case and what became of it; 1 where one fails that should not."""
    python = environment("comply")
    source = FOLDER / "comply-model"
    shutil.copytree(EXAMPLE / "model", source, dirs_exist_ok=True)
    told = genai("build", source, "--name", "comply", "--target", "cpu",
                 "--store", FOLDER / "store", "--output", FOLDER / "out")  # fmt: skip
    with served(told["containers"]["cpu"]["path"]) as address:
        command = [str(python.parent / "llm-comply"), "run", "--format", "openai-chat", "--json"]
        command += ["-u", f"{address}/v1", "-k", "none", "-m", "comply"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    failed = [_fails(case) for case in json.loads(ran.stdout)["results"]]
    return int(any(failed))


def _fails(case: dict[str, Any]) -> bool:
    """Print one case; whether it fails without a reason known here."""
    name, status = case["id"], case["status"]
    print(f"{status:8} {name:26} {ON_PURPOSE.get(name, '') if status == 'failed' else ''}")
    for line in [*case.get("errors", ()), *case.get("warnings", ())]:
        print(f"{'':8} {line}")
    return status == "failed" and name not in ON_PURPOSE


if __name__ == "__main__":
    sys.exit(main())

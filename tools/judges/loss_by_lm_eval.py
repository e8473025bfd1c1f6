"""Is the loss that lm-eval measures through the server the one of `genai evaluate`?

lm-eval's local-completions sends each piece as token ids (`echo`, `logprobs`) and adds up the
log-probabilities behind the first token: what `genai evaluate` does on the container itself.

    make judge-lm-eval
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from judges.environments import ROOT, environment
from judges.example_server import EXAMPLE, example_container, genai, served

TOKENS = ROOT / "tests" / "fixtures" / "tokens" / "eval.npy"
LIMIT = 1e-3
"""Nats a token."""


def main() -> int:
    """Print both losses; 1 where they differ by more than the limit."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--container", type=Path, help="left out: the example's, for the CPU")
    options.add_argument("--tokenizer", type=Path, default=EXAMPLE / "model")
    options.add_argument("--tokens", type=Path, default=TOKENS)
    options.add_argument("--pieces", type=int, default=0, help="only the first so many; 0 is all")
    given = options.parse_args()
    python = environment("lm-eval")
    container = given.container or example_container()
    ours = genai("evaluate", container, "--tokens", given.tokens, "--pieces", str(given.pieces))
    with served(container) as address:
        asked = Path(__file__).with_name("asked_by_lm_eval.py")
        command = [python, asked, address, given.tokens, str(given.pieces), given.tokenizer]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs = json.loads(ran.stdout.splitlines()[-1])
    apart = abs(ours["natsPerToken"] - theirs["natsPerToken"])
    print(f"genai evaluate  {ours['natsPerToken']:.6f} nats a token, {ours['tokens']} tokens")
    print(f"lm-eval {theirs['version']}  {theirs['natsPerToken']:.6f} nats a token, "
          f"{theirs['tokens']} tokens")  # fmt: skip
    print(f"apart by {apart:.1e}, at most {LIMIT:.0e} allowed")
    return int(apart > LIMIT or ours["tokens"] != theirs["tokens"])


if __name__ == "__main__":
    sys.exit(main())

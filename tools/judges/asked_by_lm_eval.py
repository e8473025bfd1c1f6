"""Runs in lm-eval's environment: scores pieces of token ids through a server.

asked_by_lm_eval.py ADDRESS TOKENS.npy PIECES TOKENIZER; prints one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import urllib.request

import numpy as np
from lm_eval.models.openai_completions import LocalCompletionsAPI


def main(address: str, tokens: str, most: str, tokenizer: str) -> None:
    """The first token of a piece is the context, which is not scored; the rest is scored."""
    pieces = np.load(tokens)[: int(most) or None].tolist()
    with urllib.request.urlopen(f"{address}/v1/models") as answer:
        name = json.load(answer)["data"][0]["id"]
    model = LocalCompletionsAPI(
        base_url=f"{address}/v1/completions",
        model=name,
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        num_concurrent=4,
        max_length=max(map(len, pieces)) + 1,
    )
    asked = [(("", ""), piece[:1], piece[1:]) for piece in pieces]
    told = model._loglikelihood_tokens(asked)  # noqa: SLF001 - the one that takes token ids
    count = sum(len(piece) - 1 for piece in pieces)
    loss = -sum(score for score, _ in told) / count
    version = importlib.metadata.version("lm-eval")
    print(json.dumps({"natsPerToken": loss, "tokens": count, "version": version}))


if __name__ == "__main__":
    main(*sys.argv[1:])

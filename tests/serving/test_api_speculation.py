"""Guesses through HTTP: the same answers in every form, counted by vLLM's names."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from running import Client, Running

BODIES = [
    {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0},
    {"prompt": [5, 6, 7], "max_tokens": 12, "seed": 3, "n": 3, "logprobs": 2},
    {"prompt": [[5, 6], [8]], "max_tokens": 9, "temperature": 0, "model": "c"},
    {"prompt": "def main(", "max_tokens": 20, "seed": 1, "stop": ["e", "a"]},
    {"prompt": [9], "max_tokens": 20, "seed": 2, "min_tokens": 5, "presence_penalty": 1.0},
    {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1},
    {"prompt": [5, 6], "max_tokens": 12, "structured_outputs": {"regex": "[a-d]{3,9}"}, "seed": 1},
    {"prompt": [3], "max_tokens": 8, "temperature": 0, "model": "both", "ignore_eos": True},
]


def choices(client: Client, body: dict[str, Any]) -> Any:
    answered = client.post("/v1/completions", body | {"return_token_ids": True})
    assert answered.status == 200, answered.raw
    return answered.json["choices"]


def streamed(client: Client, body: dict[str, Any]) -> list[list[int]]:
    answered = client.post("/v1/completions", body | {"return_token_ids": True, "stream": True})
    told = [chunk["choices"][0] for chunk in answered.events[:-1]]
    return [
        [
            token
            for choice in told
            if choice["index"] == index
            for token in choice.get("token_ids", [])
        ]
        for index in range(max(choice["index"] for choice in told) + 1)
    ]


def test_every_answer_is_that_of_a_server_without_guesses(
    guessing: Running, client: Client
) -> None:
    expected = [choices(client, body) for body in BODIES]
    with concurrent.futures.ThreadPoolExecutor(len(BODIES)) as pool:
        together = list(pool.map(lambda body: choices(guessing.client, body), BODIES))
    assert together == expected
    for body, told in zip(BODIES, expected, strict=True):
        if "echo" not in body:
            assert streamed(guessing.client, body) == [choice["token_ids"] for choice in told]


def test_guesses_are_told_in_usage_and_counted_by_place(guessing: Running) -> None:
    def counted() -> list[float]:
        lines = guessing.client.get("/metrics").raw.decode().splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
        names = [
            'drafts_total{engine="0",model_name="scripted"}',
            'draft_tokens_total{engine="0",model_name="scripted"}',
            'accepted_tokens_total{engine="0",model_name="scripted"}',
            *(
                "accepted_tokens_per_pos_total"
                f'{{engine="0",model_name="scripted",position="{place}"}}'
                for place in range(3)
            ),
        ]
        return [float(told[f"vllm:spec_decode_num_{name}"]) for name in names]

    before = counted()
    body = {"prompt": [5, 6, 7], "max_tokens": 10, "temperature": 0, "ignore_eos": True}
    usage = guessing.client.post("/v1/completions", body).json["usage"]
    assert usage["completion_tokens"] == 10
    details = usage["completion_tokens_details"]
    # A token of the prompt's pass, then drafts of 3, 3 and, at the end, 0: nothing is left over.
    assert details == {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 0}
    assert [b - a for a, b in zip(before, counted(), strict=True)] == [2, 6, 6, 2, 2, 2]


def test_an_answer_may_be_written_without_guesses(guessing: Running, client: Client) -> None:
    body = BODIES[0] | {"disable_spec_decode": True}
    answered = guessing.client.post("/v1/completions", body)
    assert answered.json["choices"][0]["text"] == choices(client, BODIES[0])[0]["text"]
    details = answered.json["usage"]["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    plain = client.post("/v1/completions", body).json["usage"]
    assert "completion_tokens_details" not in plain
    assert "spec_decode" not in client.get("/metrics").raw.decode()

"""What the server counts, by vLLM's names, so that dashboards made for it work."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from genai_runtime.speculation.control import Counts, Gain
from genai_serving.adapters.loaded import AT_REST
from genai_serving.observer import Load
from genai_serving.requests import AnswerRequest, Ended, Finish

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
_LABELS = ("model_name", "engine")
_REASONS = {Finish.CANCELLED: "abort", Finish.DEADLINE: "abort"}


@dataclass(frozen=True)
class AdapterLoad:
    """Adapters, by the names that clients know.

    Attributes:
        most: That a pass may hold.
        states: Where each is; see `adapters.loaded`.
        bytes: Of those in memory, outside a pass's columns.
        running: Worn by running requests.
        waiting: Worn by waiting ones.
    """

    most: int = 0
    states: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    running: Collection[str] = ()
    waiting: Collection[str] = ()


class Metrics:
    """An observer of the engine; `text` is what a scrape gets.

    Args:
        model_name: A label of every series.
    """

    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, "0")
        self._registry = CollectorRegistry()
        self.load: Callable[[], Load] | None = None
        """Asked at every scrape."""
        self.adapters: Callable[[], AdapterLoad] | None = None
        """As well."""
        self.guessed: Callable[[], Counts | None] | None = None
        """Likewise."""
        self.gain: Callable[[], Gain | None] = lambda: None
        """Likewise."""
        self._prompt = self._counter("prompt_tokens", "Prompt tokens read.")
        self._written = self._counter("generation_tokens", "Tokens written.")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found and not computed.")
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by how.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, reason)
        seconds = {
            "time_to_first_token_seconds": "From arrival to the first token.",
            "inter_token_latency_seconds": "Between two tokens of an answer.",
            "e2e_request_latency_seconds": "From arrival to the end.",
            "request_queue_time_seconds": "Waiting for a slot.",
            "request_inference_time_seconds": "From the slot to the end.",
            "request_prefill_time_seconds": "From the slot to the first token.",
            "request_decode_time_seconds": "From the first token to the last.",
            "request_time_per_output_token_seconds": "Mean of a request behind its first token.",
        }
        tokens = {
            "request_prompt_tokens": "Prompt tokens of a request.",
            "request_generation_tokens": "Tokens that a request wrote.",
            "request_params_max_tokens": "What a request allowed.",
            "iteration_tokens_total": "Tokens of a pass.",
        }
        self._histograms = {
            name: Histogram(
                f"vllm:{name}", about, _LABELS, buckets=buckets, registry=self._registry
            ).labels(*self._labels)
            for group, buckets in ((seconds, _SECONDS), (tokens, _TOKENS))
            for name, about in group.items()
        }
        self._registry.register(self)  # type: ignore[arg-type]

    def collect(self) -> Iterator[Metric]:
        """Gauges, as they are now."""
        load = self.load() if self.load is not None else Load(0, 0, 0.0)
        for name, about, value in (
            ("num_requests_running", "Sequences with a slot.", load.running),
            ("num_requests_waiting", "Sequences that wait for a slot or memory.", load.waiting),
            ("kv_cache_usage_perc", "Share of the cache that is reserved, 0 to 1.", load.reserved),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", about, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        yield from self._adapters()
        counts = self.guessed() if self.guessed is not None else None
        if counts is not None:
            yield from self._speculation(counts)
        gain = self.gain()
        if gain is not None:
            yield from self._gain(gain)

    def _adapters(self) -> Iterator[Metric]:
        """Both are always there: routers that read them know then that there is none."""
        load = self.adapters() if self.adapters is not None else AdapterLoad()
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of requests, and when that was so.",
            labels=(*_LABELS, "max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        names = [",".join(sorted(names)) for names in (load.waiting, load.running)]
        now = time.time()  # noqa: TID251 - the value is when it was read, as vLLM has it
        info.add_metric([*self._labels, str(load.most), *names], now)
        yield info
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "Adapters in memory: 1; those that are read before use: 0.",
            labels=(*_LABELS, "lora_name"),
        )
        state = GaugeMetricFamily(
            "genai_adapter_state",
            "Where each adapter is: laid in, coming, in memory or at rest.",
            labels=(*_LABELS, "lora_name", "state"),
        )
        for name, where in load.states.items():
            loaded.add_metric([*self._labels, name], where != AT_REST)
            state.add_metric([*self._labels, name, where], 1)
        yield loaded
        yield state
        held = GaugeMetricFamily(
            "genai_adapter_cache_bytes", "Adapters that are kept in memory.", labels=_LABELS
        )
        held.add_metric(self._labels, load.bytes)
        yield held

    def _speculation(self, counts: Counts) -> Iterator[Metric]:
        for name, about, value in (
            ("drafts", "Drafts that were verified.", counts.drafts),
            ("draft_tokens", "Tokens of drafts.", counts.guessed),
            ("accepted_tokens", "Tokens of drafts that came true.", counts.accepted),
        ):
            counter = CounterMetricFamily(f"vllm:spec_decode_num_{name}", about, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        places = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Tokens of drafts that came true, by place in the draft.",
            labels=(*_LABELS, "position"),
        )
        for place, value in enumerate(list(counts.positions)):
            places.add_metric((*self._labels, str(place)), value)
        yield places

    def _gain(self, gain: Gain) -> Iterator[Metric]:
        for name, about, value in (
            ("seconds", "Passes of writing answers took, guessing included.", gain.seconds),
            ("plain_seconds", "Plain passes would have taken for the same tokens.", gain.plain),
        ):
            counter = CounterMetricFamily(f"genai_spec_decode_{name}", about, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def on_pass(self, *, rows: int, tokens: int, seconds: float) -> None:
        """A pass was run."""
        del rows, seconds
        self._histograms["iteration_tokens_total"].observe(tokens)

    def on_token(self, gap: float | None) -> None:
        """A token was written, `gap` seconds behind the one before it."""
        self._written.inc()
        if gap is not None:
            self._histograms["inter_token_latency_seconds"].observe(gap)

    def on_end(self, request: AnswerRequest, ended: Ended) -> None:
        """A request ended."""
        reason = _REASONS.get(ended.reason, ended.reason.value)
        self._success.labels(*self._labels, reason).inc()
        times, observe = ended.times, self._observe
        if times.first is not None:
            self._prompt.inc(ended.prompt_tokens)
        if ended.cached_tokens is not None:
            self._queries.inc(ended.prompt_tokens)
            self._hits.inc(ended.cached_tokens)
        observe("request_prompt_tokens", ended.prompt_tokens)
        observe("request_generation_tokens", ended.tokens)
        observe("request_params_max_tokens", request.max_tokens)
        observe("e2e_request_latency_seconds", times.ended - times.arrived)
        if times.admitted is None:
            return
        observe("request_queue_time_seconds", times.admitted - times.arrived)
        observe("request_inference_time_seconds", times.ended - times.admitted)
        if times.first is None:
            return
        observe("time_to_first_token_seconds", times.first - times.arrived)
        observe("request_prefill_time_seconds", times.first - times.admitted)
        observe("request_decode_time_seconds", times.ended - times.first)
        if ended.tokens > 1:
            mean = (times.ended - times.first) / (ended.tokens - 1)
            observe("request_time_per_output_token_seconds", mean)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def _counter(self, name: str, about: str) -> Counter:
        made = Counter(f"vllm:{name}", about, _LABELS, registry=self._registry)
        return made.labels(*self._labels)

"""Metrics for Prometheus: requests, tokens, times, and how full the server is."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime.engine.texts import GeneratedText
from runtime.server.admission import Admission

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one server."""

    def __init__(self, admission: Admission, *, slots: int, model: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("gpt2_onnx_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "gpt2_onnx_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._prompt = Counter("gpt2_onnx_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter(
            "gpt2_onnx_cached_tokens", "Tokens of prompts that were not read again.", registry=registry
        )
        self._generated = Counter("gpt2_onnx_generated_tokens", "Tokens generated.", registry=registry)
        self._ended = Counter("gpt2_onnx_texts", "Texts that ended, by reason.", ["reason"], registry=registry)
        self._queued = Histogram(
            "gpt2_onnx_queue_seconds", "From a text's arrival to its slot.", buckets=SECONDS, registry=registry
        )
        self._first = Histogram(
            "gpt2_onnx_time_to_first_token_seconds",
            "From a text's arrival to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "gpt2_onnx_time_per_output_token_seconds",
            "Between two tokens of a text, on average.",
            buckets=BETWEEN,
            registry=registry,
        )
        for name, help_text, value in (
            ("running", "Texts that run.", lambda: min(admission.under_way, admission.slots)),
            ("waiting", "Texts that wait for a slot.", lambda: admission.waiting),
            ("slots", "Texts that can run at once.", lambda: slots),
        ):
            Gauge(f"gpt2_onnx_{name}", help_text, registry=registry).set_function(value)
        Gauge("gpt2_onnx_model", "The model that is served.", ["name"], registry=registry).labels(model).set(1)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def finished(self, texts: Sequence[GeneratedText]) -> None:
        """Count texts that have ended, whichever way."""
        for text in texts:
            tokens = len(text.generation.token_ids)
            self._generated.inc(tokens)
            self._ended.labels(reason_of(text)).inc()
            if text.began is None:
                continue
            self._prompt.inc(len(text.generation.prompt_ids))
            self._cached.inc(text.reused or 0)
            self._queued.observe(text.began - text.arrived)
            if text.first is not None:
                self._first.observe(text.first - text.arrived)
                if tokens > 1 and text.last is not None:
                    self._between.observe((text.last - text.first) / (tokens - 1))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


def reason_of(text: GeneratedText) -> str:
    return "error" if text.error else text.generation.finish_reason or "cancelled"

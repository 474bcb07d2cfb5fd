"""application: fronts and replicas as a Ray Serve application, for `serve.run` and Serve's config files."""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from runtime.cluster.front import Front
from runtime.cluster.replica import Replica
from runtime.cluster.settings import ClusterSettings

ROUTER = "runtime.cluster.router:BeginningsRouter"
SOON = 4  # the share of a replica's slots at which the next one is asked: docs/scale.md has what that gives
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 30}  # late: one under pressure must not be killed
UP, DOWN = 10, 300  # seconds for which more, or fewer, must have been needed: a replica takes texts after seconds
MANY = 10_000  # requests that a front holds at once


def application(options: dict[str, Any]) -> Any:
    """The application of `ClusterSettings.of(**options)`, named in Serve's config files as `import_path`.

    Example:
        >>> from runtime.cluster import application
        >>> served = application({"model": "/models/gpt2", "replicas": 2})  # ray.serve.run(served) serves it
    """
    return build(ClusterSettings.of(**options))


def build(settings: ClusterSettings) -> Any:
    limits = settings.server()
    replicas = serve.deployment(
        Replica,
        name="replicas",
        max_ongoing_requests=settings.slots,
        max_queued_requests=limits.max_queue,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        request_router_config=routed(settings),
        graceful_shutdown_timeout_s=settings.grace,
        max_surge_percent=settings.surge,
        **HEALTH,
        **counted(settings),
    ).bind(settings.model, settings.load(), dict(settings.limits), release_of(settings.model))
    front = serve.deployment(
        serve.ingress()(Front),
        name="fronts",
        num_replicas=settings.fronts,
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.grace,
        max_surge_percent=100,
        **HEALTH,
    )
    return front.bind(replicas, limits.max_body, settings.prefix)


def routed(settings: ClusterSettings) -> RequestRouterConfig:
    """By the prompt's beginning; where nobody asks for that, the freer of two random ones, which is Ray's own way."""
    if not settings.prefix:
        return RequestRouterConfig()
    return RequestRouterConfig(
        request_router_class=ROUTER, request_router_kwargs={"soon": max(2, settings.slots // SOON)}
    )


def counted(settings: ClusterSettings) -> dict[str, Any]:
    """How many replicas: one number, or a range in which there are so many that slots suffice for what is asked."""
    least, most = settings.replicas
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=settings.slots,
            upscale_delay_s=UP,
            downscale_delay_s=DOWN,
        )
    }


def release_of(model: str) -> str:
    """What changes when another bundle takes the place of the one at `model`, so that Ray makes all replicas anew."""
    manifest = Path(model, "manifest.json")
    try:
        return f"{manifest.resolve()} {manifest.stat().st_mtime_ns}"
    except OSError:  # only the machines of the replicas may have it
        return ""

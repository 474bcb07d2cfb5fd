"""ClusterSettings: how many replicas there are, what each has of a machine, and how it loads and serves its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from runtime.server import ServerSettings

LOADING = ("precision", "device", "cache", "threads", "gpu_mem_limit", "public_key")
LIMITS = tuple(each.name for each in fields(ServerSettings))
MOST = 10_000  # replicas


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What a cluster serves.

    Attributes:
        model: A bundle's folder, at the same path on every machine.
        replicas: How many there are, or (least, most), between which Ray chooses by the requests under way.
        cpus: CPUs that Ray reserves for each replica, and its threads unless `threads` says otherwise.
        gpus: Cards that Ray reserves for each, or a share of one.
        slots: Texts that run at once in each.
        fronts: Processes that take requests and pass each on to a replica.
        prefix: Characters of a prompt's beginning by which its replica is chosen; 0 takes the freer of two random ones.
        grace: Seconds that requests under way have to end where a replica is stopped.
        surge: Replicas beyond their number while all are made anew, in percent of it; 0 stops an old one first.
        loading: Other options of `runtime.load`: precision, device, cache, threads, gpu_mem_limit, public_key.
        limits: Options of `ServerSettings`.

    Raises:
        ValueError, TypeError: A value out of its range, or an option that there is not.

    Example:
        >>> from runtime.cluster import ClusterSettings
        >>> ClusterSettings.of(model="models/gpt2", replicas=[1, 8], max_queue=16, precision="int8").replicas
        (1, 8)
    """

    model: str
    replicas: tuple[int, int] = (1, 1)
    cpus: float = 1
    gpus: float = 0
    slots: int = 32
    fronts: int = 2
    prefix: int = 256
    grace: float = 30.0
    surge: int = 0
    loading: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model must name a bundle's folder, got {self.model!r}")
        least, most = self.replicas
        check("replicas", least, 1, MOST, whole=True)
        check("replicas", most, least, MOST, whole=True)
        check("cpus", self.cpus, 0, 1024)
        check("gpus", self.gpus, 0, 64)
        check("slots", self.slots, 1, 4096, whole=True)
        check("fronts", self.fronts, 1, 1000, whole=True)
        check("prefix", self.prefix, 0, 1_000_000, whole=True)
        check("grace", self.grace, 0, 86_400)
        check("surge", self.surge, 0, 100, whole=True)
        self.server()

    @classmethod
    def of(cls, **options: Any) -> "ClusterSettings":
        """The settings of options side by side, as a Serve config file has them."""
        own = {each.name for each in fields(cls)} - {"loading", "limits"}
        if unknown := options.keys() - own - {*LOADING, *LIMITS}:
            known = ", ".join(sorted({*own, *LOADING, *LIMITS}))
            raise ValueError(f"there is no option {sorted(unknown)[0]!r} of a cluster; there are {known}")
        given = {name: value for name, value in options.items() if name in own}
        given["replicas"] = as_range(given.get("replicas", 1))
        return cls(
            **{"model": "", **given},
            loading={name: options[name] for name in LOADING if options.get(name) is not None},
            limits={name: options[name] for name in LIMITS if name in options},
        )

    def server(self) -> ServerSettings:
        """The limits of each replica's server."""
        return ServerSettings(**self.limits)

    def load(self) -> dict[str, Any]:
        """The options with which each replica loads its model."""
        threads = {"threads": max(1, int(self.cpus))} if self.cpus else {}
        return {"slots": self.slots, **threads, **self.loading}


def as_range(replicas: Any) -> tuple[int, int]:
    """(least, most) of a number, of two, or of a text such as 4 or 1:8."""
    given = replicas.split(":") if isinstance(replicas, str) else replicas if isinstance(replicas, list) else [replicas]
    try:
        least, most = map(int, given * 2 if len(given) == 1 else given)
    except (TypeError, ValueError):
        raise ValueError(f"replicas must be a number, or two such as 1:8, got {replicas!r}") from None
    return least, most


def check(name: str, value: Any, least: float, most: float, *, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        what = "an integer" if whole else "a number"
        raise ValueError(f"{name} must be {what} from {least:,} to {most:,}, got {value!r}")

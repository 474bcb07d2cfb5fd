"""BeginningsRouter: the replica that has read a prompt's beginning, while that has slots enough to answer soon."""

from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class BeginningsRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray's types are not read
    """Ray's consistent hashing, which passes a request on early: a replica is slow long before its slots are full.

    Ray sets it up with `soon` of `request_router_kwargs`: the requests under way from which on a replica is passed by.
    A front knows how many there were when it last asked the replica, its own request among them; so it is at least two.
    Where all of a beginning's replicas have as many, the one with the fewest takes it.
    """

    def initialize_state(self, *, soon: int, **options: Any) -> None:
        super().initialize_state(**options)
        self._soon = soon

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Replicas in the order in which they are asked; Ray takes the freest of those side by side."""
        ring = [each for rank in await super().choose_replicas(candidate_replicas, pending_request) for each in rank]
        return [*([each] for each in ring if self._under_way(each) < self._soon), *([ring] if ring else [])]

    def _under_way(self, replica: Any) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

"""Sends a user's socket and image stream to the same replica, for as long as that replica runs."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from hashlib import blake2b

from ray.serve._private.replica_result import ReplicaResult
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

REMEMBERED = 100_000
"""Users whose replica is remembered; the least recently connected is forgotten first."""


class StickyRouter(RequestRouter):  # type: ignore[misc, unused-ignore] # Any where Ray is not installed
    """Routes by the user's id in the path, `/api/<ws or stream>/<user>`.

    A new user's replicas are ordered by a hash of user and replica (rendezvous hashing), which every proxy of
    the cluster computes alike; the first with room is the user's home from then on. What has no user goes to
    the least busy replica.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Begin without any users."""
        self._homes: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one after the other."""
        user = _user(pending_request)
        if user is None:
            return [candidate_replicas]
        home = self._homes.get(user)
        for replica in candidate_replicas:
            if replica.replica_id == home:
                return [[replica]]
        ranked = sorted(candidate_replicas, key=lambda replica: _rank(user, replica.replica_id))
        return [[replica] for replica in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Remember where a user is."""
        user = _user(pending_request)
        if user is None:
            return
        self._homes[user] = replica_id
        self._homes.move_to_end(user)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)


def _user(request: PendingRequest | None) -> str | None:
    if request is None or not request.metadata.is_http_request:
        return None
    # The proxy hands the request over pickled; this happens once for a connection.
    parts = pickle.loads(request.args[0]).asgi_scope["path"].split("/")
    return parts[3] if len(parts) > 3 and parts[2] in ("ws", "stream") else None


def _rank(user: str, replica: ReplicaID) -> bytes:
    return blake2b(f"{user} {replica.unique_id}".encode(), digest_size=8).digest()

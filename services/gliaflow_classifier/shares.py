"""The shards that this process assembles, and which of them it leaves to other processes.

RabbitMQ makes the consumer that came first the active one of a queue. So the classifier that starts first would
assemble all shards, however many others run. A classifier that has more than its share therefore leaves one: it closes
its consumer and joins again, behind the others. The next one in line takes over, as if this process had ended.

The highest shards are left first. So shard 0 stays where it is, shard 1 moves on until it is with a process that has
room beside shard 0, and so on: the moves end.

RabbitMQ does not say how many wait to be the active consumer of a queue. So the consumers of the classifier's queue are
counted: each classifier has one there. If some of them cannot take over a shard, as those of an earlier version, it
comes back. Then it is left again only after twice the time, since each move delivers its open messages once more.
A shard that was away for long was taken over, and comes back for another reason, as when a classifier ends: the time is
short again.
"""

from __future__ import annotations

import math
import time

from gliaflow_proto.routing import ASSEMBLERS, CLASSIFIER
from gliaflow_runtime.broker.interface import Broker

STAY_S = 5.0  # a shard stays so long at least, and twice as long each time that it has come back soon
TAKEN_OVER = 10  # a shard that was away for so many times the time that it would stay next has been taken over
BUSY_S = 30.0  # a shard whose last part came longer ago is no work


class Shares:
    """The shards of this process. The threads of its assemblers share it.

    Parameters
    ----------
    shards: the number of shards that new scans are spread over.
    """

    def __init__(self, shards: int) -> None:
        self.in_use = shards
        self._last_part = [-math.inf] * len(ASSEMBLERS)  # of each shard, by time.monotonic
        self._came = [-math.inf] * len(ASSEMBLERS)
        self._stay_s = [STAY_S] * len(ASSEMBLERS)
        self._left: dict[int, float] = {}  # the shards that were left and have not come back, and when

    def note(self, shard: int) -> None:
        """A part of this shard came: this process is its active consumer."""
        now = time.monotonic()
        if now - self._last_part[shard] > BUSY_S:
            self._came[shard] = now
        self._last_part[shard] = now

    def came_back(self, shard: int) -> None:
        """A message of this shard came, of any kind. After a return, the kept announcements are the first."""
        left = self._left.pop(shard, None)
        if left is not None and time.monotonic() - left > TAKEN_OVER * self._stay_s[shard]:
            self._stay_s[shard] = STAY_S

    def busy(self) -> list[int]:
        """The shards of which this process got parts lately."""
        now = time.monotonic()
        return [shard for shard, last in enumerate(self._last_part) if now - last < BUSY_S]

    def leaves(self, shard: int, broker: Broker) -> bool:
        """Whether this process should leave the shard to the next one in line. Raises BrokerError."""
        now, busy = time.monotonic(), self.busy()
        if shard not in busy[1:] or now - self._came[shard] < self._stay_s[shard]:
            return False
        classifiers = broker.queue_state(CLASSIFIER.name)
        share = math.ceil(self.in_use / max(1, classifiers.consumers if classifiers else 1))
        if shard not in busy[share:]:
            self._came[shard] = now
            return False
        self._last_part[shard] = -math.inf
        self._stay_s[shard] *= 2
        self._left[shard] = now
        return True

"""Rate limit for answers to wrong tokens: a burst, then a steady rate, for each address and for all together.

Only answers to wrong tokens wait. So nobody can keep out whoever has the right one, from the same address or another.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from edged.errors import AccessError

LONGEST_S = 4.0  # that an answer waits: so few connections wait, and none for long
_MOST_ADDRESSES = 1024
_IPV6_NETWORK = 64  # bits: a client has all addresses of such a network


class _Pace(NamedTuple):
    every_s: float
    at_once: int


PER_ADDRESS = _Pace(every_s=1.0, at_once=5)
OF_ALL = _Pace(every_s=0.05, at_once=100)


class GuessError(AccessError):
    """There are more wrong tokens than are answered one by one."""

    code = "guessing"
    retry_s: ClassVar[int] = 5


class Guesses:
    """Recent wrong tokens. One number is kept for each of the last 1,024 addresses.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # When the last answer so far would be sent if there were no burst.
        self._busy_until: OrderedDict[str, float] = OrderedDict()
        self._all_busy_until = 0.0

    def __len__(self) -> int:
        """Return the number of addresses that are remembered."""
        return len(self._busy_until)

    async def wait(self, address: str) -> None:
        """Wait until the answer to a wrong token may be sent.

        Args:
            address: IP address that the token came from.

        Raises:
            GuessError: It would wait for too long, because many wait already.
        """
        if (delay_s := self.delay_s(address)) > 0:
            await asyncio.sleep(delay_s)

    def delay_s(self, address: str) -> float:
        """Count a wrong token, and return the seconds that its answer has to wait.

        Raises:
            GuessError: See `wait`.
        """
        now, network = self._clock(), _network_of(address)
        mine = max(now, self._busy_until.get(network, 0.0))
        of_all = max(now, self._all_busy_until)
        delay_s = max(0.0, _left_s(mine, now, PER_ADDRESS), _left_s(of_all, now, OF_ALL))
        if delay_s > LONGEST_S:
            raise GuessError(
                f"too many wrong tokens from {address}, or from all addresses; send the right one, or try again in"
                f" {GuessError.retry_s} s"
            )
        self._busy_until[network] = mine + PER_ADDRESS.every_s
        self._busy_until.move_to_end(network)
        if len(self._busy_until) > _MOST_ADDRESSES:
            self._busy_until.popitem(last=False)
        self._all_busy_until = of_all + OF_ALL.every_s
        return delay_s


def _left_s(busy_until: float, now: float, pace: _Pace) -> float:
    return busy_until - now - (pace.at_once - 1) * pace.every_s


def _network_of(address: str) -> str:
    """Return the network that one client has: of IPv6, many addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, _IPV6_NETWORK), strict=False))
    return address

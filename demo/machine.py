"""What the machine has to offer before a server is started on it: a free port and enough memory."""

from __future__ import annotations

import socket
from pathlib import Path

from demo.errors import DemoError

HOST = "127.0.0.1"
GIB = 1 << 30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def choose_port(port: int | None) -> int:
    """`port` if nobody listens there, or any free port if it is None.

    Raises:
        DemoError: the port is taken, or not one that this user may open.
    """
    with socket.socket() as probe:
        # As servers do: a port that a connection has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DemoError(
                f"port {port} cannot be used ({reason}): name another with --port, or none to have a free"
                " one chosen"
            ) from None
        return int(probe.getsockname()[1])


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that new processes can use, as the kernel and, in a container, its limit say; None where
    nobody says.
    """
    amounts = [
        amount for amount in (_of_the_kernel(meminfo), _of_the_container(cgroup)) if amount is not None
    ]
    return min(amounts, default=None)


def require_memory(needed: int, available: int | None, what: str) -> None:
    """Raises DemoError if `available` is known and less than `needed` bytes; `what` is what needs it."""
    if available is not None and available < needed:
        raise DemoError(
            f"not enough memory: {what} needs about {needed / GIB:.1f} GiB and {available / GIB:.1f} GiB are"
            " available. Close something, or name a smaller model with --model"
        )


def _of_the_kernel(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _of_the_container(cgroup: Path) -> int | None:
    """What is left below a cgroup's limit (version 2, then 1). Cached file pages count as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((cgroup / limit).read_text())
            now = int((cgroup / used).read_text())
            counts = (cgroup / limit).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):  # no such file, or "max"
            continue
        reclaimable = int(counts[counts.index(cached) + 1]) if cached in counts else 0
        return max(most - now + reclaimable, 0)
    return None

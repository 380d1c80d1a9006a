"""The points at which time to first token is measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

CACHED = (1000, 2000, 4000, 8000)
NEW = (16, 64, 256)
MODULES = (1, 8, 32)


@dataclass(frozen=True)
class Point:
    """One point of the grid. ``block_size`` None is the settings'."""

    cached: int
    new: int
    modules: int
    block_size: int | None = None

    @property
    def key(self) -> str:
        """Its name in the result: ``4000:24:8``, ``4000:24:8:bs32``."""
        size = "" if self.block_size is None else f":bs{self.block_size}"
        return f"{self.cached}:{self.new}:{self.modules}{size}"

    @classmethod
    def read(cls, text: str) -> Point:
        """``4k:24:8`` or ``4000:24:8:bs32``."""
        cached, new, modules, *size = text.strip().split(":")
        count = int(cached[:-1]) * 1000 if cached.endswith("k") else int(cached)
        return cls(count, int(new), int(modules), int(size[0].removeprefix("bs")) if size else None)


# 4,096 is whole blocks for vLLM's prefix cache, which recomputes the end of 4,000: the yardstick's best case.
NAMED = (
    Point(4000, 24, 8),
    Point(4096, 24, 8),
    Point(4000, 24, 8, 32),
    Point(4096, 24, 8, 32),
    Point(4000, 16, 8),
    Point(4096, 16, 8),
    Point(8000, 16, 8),
)


def points_of(grid: str, *, quick: bool) -> tuple[Point, ...]:
    """The points that ``--grid`` names."""
    if quick and grid == "all":
        return (Point(512, 24, 4), Point(512, 24, 4, 32))
    whole = tuple(Point(c, n, m) for c, m, n in itertools.product(CACHED, MODULES, NEW))
    if grid in ("all", "named", "grid"):
        points = (*(NAMED if grid != "grid" else ()), *(whole if grid != "named" else ()))
        return tuple(dict.fromkeys(points))
    return tuple(Point.read(text) for text in grid.split(","))

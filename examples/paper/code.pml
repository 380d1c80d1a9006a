<!-- The paper's first use case: several source files, each a module; a request takes those that it is about. -->
<schema name="code">
  <system>You write Python for a small game. These are its source files.

<module name="unit"><![CDATA[
# unit.py
from dataclasses import dataclass


@dataclass
class Unit:
    """Something that stands on the map and can be hurt."""

    name: str
    health: int
    strength: int
    x: int = 0
    y: int = 0

    @property
    def is_alive(self) -> bool:
        return self.health > 0

    def move(self, dx: int, dy: int) -> None:
        self.x += dx
        self.y += dy

    def attack(self, other: "Unit") -> int:
        """Hurt another unit; returns what it lost."""
        lost = min(self.strength, other.health)
        other.health -= lost
        return lost
]]></module>
<module name="map"><![CDATA[
# map.py
from unit import Unit


class Map:
    """A field of squares, with units on some of them."""

    def __init__(self, width: int, height: int):
        self.width = width
        self.height = height
        self.units: list[Unit] = []

    def place(self, unit: Unit, x: int, y: int) -> None:
        if not self.is_inside(x, y) or self.unit_at(x, y) is not None:
            raise ValueError(f"{unit.name} cannot stand on {x}, {y}")
        unit.x, unit.y = x, y
        self.units.append(unit)

    def is_inside(self, x: int, y: int) -> bool:
        return 0 <= x < self.width and 0 <= y < self.height

    def unit_at(self, x: int, y: int) -> Unit | None:
        return next((unit for unit in self.units if (unit.x, unit.y) == (x, y)), None)
]]></module>
<module name="player"><![CDATA[
# player.py
from map import Map
from unit import Unit


class Player:
    """Somebody who owns units, and orders them about."""

    def __init__(self, name: str, field: Map):
        self.name = name
        self.field = field
        self.units: list[Unit] = []

    def recruit(self, unit: Unit, x: int, y: int) -> None:
        self.field.place(unit, x, y)
        self.units.append(unit)

    @property
    def has_lost(self) -> bool:
        return not any(unit.is_alive for unit in self.units)

    def strongest(self) -> Unit | None:
        return max((u for u in self.units if u.is_alive), key=lambda u: u.strength, default=None)
]]></module>
<module name="game"><![CDATA[
# game.py
from map import Map
from player import Player


class Game:
    """Players take turns until one is left."""

    def __init__(self, width: int = 16, height: int = 16):
        self.field = Map(width, height)
        self.players: list[Player] = []
        self.turn = 0

    def join(self, name: str) -> Player:
        player = Player(name, self.field)
        self.players.append(player)
        return player

    @property
    def current(self) -> Player:
        return self.players[self.turn % len(self.players)]

    def end_turn(self) -> None:
        self.turn += 1
        self.players = [player for player in self.players if not player.has_lost]
]]></module>
<module name="database"><![CDATA[
# database.py
import json
from pathlib import Path


class Database:
    """Scores of games that are over, in one file."""

    def __init__(self, path: Path):
        self.path = path
        self.scores: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def won(self, name: str) -> None:
        self.scores[name] = self.scores.get(name, 0) + 1
        self.path.write_text(json.dumps(self.scores))

    def best(self, count: int = 10) -> list[tuple[str, int]]:
        return sorted(self.scores.items(), key=lambda item: -item[1])[:count]
]]></module>
  </system>
</schema>

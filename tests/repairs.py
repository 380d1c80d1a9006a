"""What a repair makes new of a prompt, by the definitions in docs/semantics.md.

Works on what `explain` prints of the prompt without a repair, and shares no code with the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Explained = dict[str, Any]


def repair(explained: Explained, name: str) -> Explained:
    """The prompt with a repair (`none`, `full`, `link:5`, `auto`, `link:5+close`), as `explain` prints it."""
    new: set[tuple[int, int]] = set()
    for part in name.split("+"):
        if part == "full":
            new |= _all_tokens(explained)
        elif part in ("tail", "close"):
            new |= _tail_tokens(explained)
        elif part == "auto":
            new |= _auto_tokens(explained)
        elif part != "none":
            new |= _unless_all_is_seen(explained, _heads(explained, int(part.removeprefix("link:"))))
    units = {unit["id"]: unit for unit in explained["units"]}
    segments: list[dict[str, Any]] = []
    for index, segment in enumerate(explained["segments"]):
        if "new" in segment:
            segments.append(segment)
            continue
        unit = units[segment["unit"]]
        for token in range(segment["start"], segment["end"]):
            is_new = (index, token) in new
            if token == segment["start"] or is_new is not ("new" in segments[-1]):
                segments.append(
                    {"new": True, "token_ids": [], "position_ids": []}
                    if is_new
                    else {"unit": unit["id"], "start": token, "end": token}
                )
            if is_new:
                segments[-1]["token_ids"].append(unit["token_ids"][token])
                segments[-1]["position_ids"].append(unit["position_ids"][token])
            else:
                segments[-1]["end"] = token + 1
    if "close" in name.split("+"):
        return _closed({**explained, "segments": segments})
    return {**explained, "segments": segments}


def _closed(explained: Explained) -> Explained:
    """All that is new behind the last reused token, at the positions right behind it."""
    units = {unit["id"]: unit for unit in explained["units"]}
    reused = [index for index, segment in enumerate(explained["segments"]) if "new" not in segment]
    if not reused:
        return explained
    last = explained["segments"][reused[-1]]
    position = units[last["unit"]]["position_ids"][last["end"] - 1]
    segments = explained["segments"][: reused[-1] + 1]
    for segment in explained["segments"][reused[-1] + 1 :]:
        count = len(segment["token_ids"])
        segments.append({**segment, "position_ids": [position + 1 + i for i in range(count)]})
        position += count
    return {**explained, "segments": segments, "next_position": position + 1}


def _all_tokens(explained: Explained) -> set[tuple[int, int]]:
    """Every reused token, as the index of its segment and its own in the unit."""
    reused = [(i, s) for i, s in enumerate(explained["segments"]) if "new" not in s]
    return {(index, token) for index, segment in reused for token in range(segment["start"], segment["end"])}


def _auto_tokens(explained: Explained) -> set[tuple[int, int]]:
    """Of those that `tail` names: the schema's own, short ones, and those with another unit's between."""
    owners = [segment.get("unit") for segment in explained["segments"]]
    return {
        (index, token)
        for index, token in _tail_tokens(explained)
        if owners[index] == explained["schema"]
        or explained["segments"][index]["end"] - explained["segments"][index]["start"] <= 32
        or set(owners[owners.index(owners[index]) : index]) - {owners[index], None}
    }


def _tail_tokens(explained: Explained) -> set[tuple[int, int]]:
    """Of segments before which one of the same unit stands, with anything of another kind between."""
    owners = [segment.get("unit") for segment in explained["segments"]]
    return {
        (index, token)
        for index, token in _all_tokens(explained)
        if owners[index] in owners[:index]
        and any(owner != owners[index] for owner in owners[owners.index(owners[index]) : index])
    }


def _heads(explained: Explained, num_tokens: int) -> dict[str, set[int]]:
    """The first kept tokens of each unit."""
    return {
        unit["id"]: {i for i, kept in enumerate(unit["kept"]) if kept and sum(unit["kept"][:i]) < num_tokens}
        for unit in explained["units"]
    }


def _unless_all_is_seen(explained: Explained, tokens: Mapping[str, set[int]]) -> set[tuple[int, int]]:
    """These tokens of units, but where all before is reused and was seen by the unit."""
    units = {unit["id"]: unit for unit in explained["units"]}
    new: set[tuple[int, int]] = set()
    before: set[str | None] = set()  # the owners of what stands before, None for anything new
    for index, segment in enumerate(explained["segments"]):
        owner = segment.get("unit")
        if owner is not None and not before <= {owner, *units[owner]["context"]}:
            inside = range(segment["start"], segment["end"])
            renewed = {(index, token) for token in inside if token in tokens.get(owner, ())}
            new |= renewed
            if renewed:
                before.add(None)
        before.add(owner)
    return new

"""Characters by their names, for messages."""

from __future__ import annotations

import unicodedata

# Unicode gives control characters no names of their own.
_CONTROLS = (
    *("NULL", "START OF HEADING", "START OF TEXT", "END OF TEXT", "END OF TRANSMISSION", "ENQUIRY"),
    *("ACKNOWLEDGE", "BELL", "BACKSPACE", "TAB", "LINE FEED", "LINE TABULATION", "FORM FEED"),
    *("CARRIAGE RETURN", "SHIFT OUT", "SHIFT IN", "DATA LINK ESCAPE", "DEVICE CONTROL ONE"),
    *("DEVICE CONTROL TWO", "DEVICE CONTROL THREE", "DEVICE CONTROL FOUR", "NEGATIVE ACKNOWLEDGE"),
    *("SYNCHRONOUS IDLE", "END OF TRANSMISSION BLOCK", "CANCEL", "END OF MEDIUM", "SUBSTITUTE", "ESCAPE"),
    *("FILE SEPARATOR", "GROUP SEPARATOR", "RECORD SEPARATOR", "UNIT SEPARATOR"),
)


def describe_character(character: str) -> str:
    """A character's code point and name, as `U+000C FORM FEED`."""
    code = ord(character)
    name = _CONTROLS[code] if code < len(_CONTROLS) else unicodedata.name(character, "")
    if not name:
        surrogate, nameless = (
            0xD800 <= code < 0xE000,
            "NO CHARACTER" if code & 0xFFFE == 0xFFFE else "CONTROL",
        )
        name = "LONE SURROGATE" if surrogate else nameless
    return f"U+{code:04X} {name}"

"""Finding the processes that a test started, wherever they have gone."""

import os
import time
import uuid
from pathlib import Path

_VARIABLE = "PROMPT_CACHE_TEST_MARK"


class Mark:
    """A value in the environment that every descendant of a process inherits."""

    def __init__(self) -> None:
        self._value = f"{_VARIABLE}={uuid.uuid4()}"

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the mark."""
        name, value = self._value.split("=")
        return {**os.environ, name: value}

    def processes(self) -> list[str]:
        """The command lines of all living processes that carry the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._value.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended, or is not ours
                continue
        return found

    def wait_until_gone(self, timeout_s: float = 10) -> list[str]:
        """The processes that are still there after so long; none is what a test wants."""
        end = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

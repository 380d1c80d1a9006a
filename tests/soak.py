"""Long tests, by name: ``make soak ARGS=store``.

- ``store``: nearly 200,000 steps of the stateful test of the store with records and placements (a minute).
- ``zipf``: members of a pool for two tenants, aborts and re-registrations, for ``SOAK_SECONDS`` (1,800).
- ``kill``: a whole server is killed ``SOAK_KILLS`` (100) times while it writes records.
- ``hostile``: the worst documents beside plain requests, for ``SOAK_SECONDS`` (600), on a quiet machine.
"""

from __future__ import annotations

import os
import subprocess
import sys

SOAKS: dict[str, tuple[str, dict[str, str]]] = {
    "store": ("tests/engine/test_store_machine.py", {"STORE_EXAMPLES": "2000", "STORE_STEPS": "100"}),
    "hostile": ("tests/server/hostile_load.py", {}),
    "kill": ("tests/server/kill_load.py", {}),
    "zipf": ("tests/server/zipf_load.py", {}),
}


def main(names: list[str]) -> int:
    """Run soaks one after the other; the first failure ends it."""
    unknown = [name for name in names if name not in SOAKS]
    if unknown or not names:
        print(f"soak: {' '.join(unknown) or 'nothing'} is none of {', '.join(SOAKS)}", file=sys.stderr)
        return 2
    for name in names:
        tests, settings = SOAKS[name]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "--timeout=0", tests]
        status = subprocess.run(command, env=os.environ | settings).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

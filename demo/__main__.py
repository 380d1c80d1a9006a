"""``python -m demo``: starts a server with the prompt cache, asks it, and shows what was reused and saved."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from demo.errors import DemoError

# Ctrl-C too: a shell that starts the demo in the background has it ignored.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FAILED, INTERRUPTED = 2, 130


def main(given: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status. Ctrl-C and a termination signal end it and its server."""
    arguments = _parser().parse_args(given)
    from demo.story import DemoOptions, main_stream_is_safe, run_demo

    main_stream_is_safe()
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        run_demo(DemoOptions(arguments.model, arguments.dtype, arguments.port, arguments.rounds))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ndemo: interrupted, the server is stopped", flush=True)
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Serve a model, ask it, and show what is reused."
    )
    parser.add_argument(
        "--model", help="a model's folder or hub name (default: SmolLM2-135M-Instruct, converted once)"
    )
    parser.add_argument(
        "--dtype", help="serve in this data type (default: float32 for the default model, else the model's)"
    )
    parser.add_argument("--port", type=int, help="the server's port (default: a free one)")
    parser.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="measure so often (default: 5)"
    )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())

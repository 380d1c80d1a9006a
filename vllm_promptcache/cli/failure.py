"""What ends a subcommand with exit code 2."""


class Failure(Exception):
    """The command could not be tried; the message says why."""

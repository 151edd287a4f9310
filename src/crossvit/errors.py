"""The exceptions that end a command in a line of text in place of a traceback."""


class UserError(Exception):
    """Wrong key, value, path, layout or file.

    The message is one or two lines: it names the key or file and says what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class Diverged(UserError):
    """A training whose loss or weights are not finite: the recipe, not the machine, has failed."""


class FaultsFound(Exception):
    """A check has done its work and found faults: exit code 1. The message is one line."""


class Stopped(SystemExit):
    """A signal has asked the command to end, and it has come to a place where nothing is half done; exit code 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

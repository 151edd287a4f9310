"""The one exception that stands for something a user can put right."""


class UserError(Exception):
    """Wrong key, value, path, layout or file.

    The message is one or two lines: it names the key or file and says what to do. The command line prints it without a
    traceback and exits with code 2.
    """

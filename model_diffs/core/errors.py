"""The one exception that means: the input is wrong, not the program."""


class BadInput(Exception):
    """Something that was given cannot be used.

    The message is a single line that names the thing and says what to do about it. Scripts print it
    on stderr and leave with status 2; nothing is written and earlier results stay as they are.
    """

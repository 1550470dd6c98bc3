"""The one exception that means "the set-up is wrong": exit code 2, one sentence, no traceback."""


class StageError(Exception):
    """A wrong setting, path or input that the user can mend.

    The message says what, where, got, wanted and the remedy, in one sentence.
    """


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

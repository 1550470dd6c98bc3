"""The one exception that means "the set-up is wrong": exit code 2, one sentence, no traceback."""


class StageError(Exception):
    """A wrong setting, path or input that the user can mend.

    The message says what, where, got, wanted and the remedy, in one sentence.
    """

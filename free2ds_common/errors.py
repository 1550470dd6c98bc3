"""The exception that means "the set-up is wrong": exit code 2, one sentence, no traceback."""

from collections.abc import Mapping


class StageError(Exception):
    """A wrong setting, path or input that the user can fix.

    The message is one sentence: what, where, got, wanted, remedy.

    Attributes:
        counts: Records read, written, dropped and rejected so far; empty where none were counted.
    """

    def __init__(self, sentence: str, counts: Mapping[str, int] | None = None) -> None:
        """Keep the sentence and the counts."""
        super().__init__(sentence)
        self.counts = dict(counts or {})


class SettingError(StageError):
    """A setting that its stage does not accept.

    Attributes:
        setting: Its name.
        problem: The rest of the sentence: "got 65, wanted 1 to 64."
    """

    def __init__(self, setting: str, problem: str) -> None:
        """Keep both parts."""
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

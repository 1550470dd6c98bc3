"""Checks of parameters: each raises one clear sentence."""

from collections.abc import Collection

from free2ds_common.errors import StageError

# Number formats that a model may run in; auto is bfloat16 on a GPU, else float32.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a name that is not one of `choices`.

    Raises:
        StageError: `value` is unknown.
    """
    if value not in choices:
        raise StageError(f"{name}: got {value!r}, wanted one of {', '.join(sorted(choices))}.")


def require_at_least(name: str, value: float, minimum: float) -> None:
    """Refuse a number below `minimum`, or not a number.

    Raises:
        StageError: `value` is too small or NaN.
    """
    if not value >= minimum:
        raise StageError(f"{name}: got {value:g}, wanted a number of at least {minimum:g}.")


def require_fraction(name: str, value: float, *, zero_allowed: bool = True) -> None:
    """Refuse a number outside [0, 1], or (0, 1] when `zero_allowed` is false.

    Raises:
        StageError: `value` is out of range or NaN.
    """
    if not 0 <= value <= 1 or (value == 0 and not zero_allowed):
        raise StageError(f"{name}: got {value:g}, wanted a number in {'[' if zero_allowed else '('}0, 1].")

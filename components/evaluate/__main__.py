"""The evaluate stage from a shell, and its converter, which makes benchmark folders from official files."""

import sys
from collections.abc import Sequence

from components.evaluate.config import ConvertConfig, EvaluateConfig
from free2ds_common.cli import parse, stage_main
from free2ds_common.failure import run_reported

CONVERT = "convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage, or the converter where that is the first argument; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _convert(given[1:]) if given[:1] == [CONVERT] else stage_main("evaluate", EvaluateConfig, given)


def _convert(argv: Sequence[str]) -> int:
    config = parse(ConvertConfig, argv, f"python -m components.evaluate {CONVERT}")

    def work() -> None:
        # Here, not at the top: --help does not wait for pyarrow.
        from components.evaluate.convert import convert

        print(f"{config.output}: {convert(config)} questions")

    return run_reported(CONVERT, work)


if __name__ == "__main__":
    sys.exit(main())

"""The evaluate stage from a shell, and its converter, which makes benchmark folders from official files."""

import sys
from collections.abc import Sequence

from components.evaluate.config import ConvertConfig, EvaluateConfig
from free2ds_common.cli import parse, run_command, stage_main
from free2ds_common.redact import redacted

CONVERT = "convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage, or the converter where that is the first argument; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _convert(given[1:]) if given[:1] == [CONVERT] else stage_main("evaluate", EvaluateConfig, given)


def _convert(argv: Sequence[str]) -> int:
    config = parse(ConvertConfig, argv, f"python -m components.evaluate {CONVERT}")

    def work(local: ConvertConfig) -> int:
        # Here, not at the top: --help does not wait for pyarrow.
        from components.evaluate.convert import convert

        return convert(local)

    return run_command(
        CONVERT, config, work, lambda questions: print(f"{redacted(config.output)}: {questions} questions")
    )


if __name__ == "__main__":
    sys.exit(main())

"""Command line of joint_selection, and of sweep, which tries other settings on its scores."""

import sys
from collections.abc import Callable, Sequence

from components.joint_selection.options import DRAW_OPTIONS, SWEPT
from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage, or sweep where that is the first argument; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _sweep(given[1:]) if given[:1] == ["sweep"] else _select(given)


def _select(argv: Sequence[str]) -> int:
    parser = stage_parser(
        "joint_selection",
        "Join where the models look with how typical the text is, and draw. With `sweep` as the first argument: what "
        "other settings would select from the scores of an earlier run (sweep --help).",
    )
    add = parser.add_argument
    add("--records", required=True, help="records/1 folder of ingest")
    add("--llava-attention", required=True, nargs="+", help="attention/1 folders by LLaVA, one per shard")
    add("--mgm-attention", required=True, nargs="+", help="attention/1 folders by MGM, one per shard")
    add("--text-scores", required=True, help="text_scores/1 folder of cluster_scoring")
    add("--image-root-uri", default="", help="folder or URI of the images, for the report's galleries")
    for name, (default, kind, text) in DRAW_OPTIONS.items():
        add(f"--{name}", type=kind, default=default, help=text)
    add("--top-percent", type=float, default=defaults.TOP_PERCENT, help="share of a map that counts as looked at")
    add(
        "--max-reject-fraction",
        type=float,
        default=defaults.MAX_REJECT_FRACTION,
        help="largest accepted share of records that cannot be used or were not scored, and of unknown ids",
    )
    add("--selected", required=True, help="LLaVA JSON to write")
    add("--scores", required=True, help="scores/1 folder to write")
    add("--report", required=True, help="HTML page to write")
    add("--summary", required=True, help="JSON to write: counts, tilt, parameters")
    add("--random", required=True, help="LLaVA JSON to write: a random control of the same size")
    add("--overview", default="", help="Markdown to write: the report in a few lines")
    add("--kmeans", default="", help="kmeans/1 folder of cluster_scoring, for the report's page on clusters")
    options = vars(parser.parse_args(argv))

    def work() -> StageResult:
        # Here, not at the top: --help shall not wait for pyarrow and matplotlib.
        from components.joint_selection.stage import JointSelectionConfig, run

        return run(JointSelectionConfig(**options))

    return run_stage(work)


def _sweep(argv: Sequence[str]) -> int:
    parser = stage_parser("joint_selection sweep", "What other settings would select, as tables; no model is run.")
    parser.add_argument("--scores", required=True, help="scores/1 folder of an earlier selection")
    for name, (default, kind, text) in DRAW_OPTIONS.items():
        if name.replace("-", "_") in SWEPT:
            several = _list_of(kind)
            parser.add_argument(f"--{name}", type=several, default=str(default), help=f"{text}; several with commas")
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--output", default="", help="JSON to write: all tables in full")
    options = vars(parser.parse_args(argv))

    def work() -> None:
        from components.joint_selection.sweep import SweepConfig, as_markdown, run

        print(as_markdown(run(SweepConfig(**options))))

    return run_stage(work)


def _list_of(kind: Callable) -> Callable[[str], list]:
    def parse(text: str) -> list:
        return [kind(value.strip()) for value in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


if __name__ == "__main__":
    sys.exit(main())

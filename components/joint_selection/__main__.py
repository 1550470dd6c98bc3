"""Command line of joint_selection."""

import sys
from collections.abc import Sequence

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = stage_parser("joint_selection", "Join where the models look with how typical the text is, and draw.")
    add = parser.add_argument
    add("--records", required=True, help="records/1 folder of ingest")
    add("--llava-attention", required=True, nargs="+", help="attention/1 folders by LLaVA, one per shard")
    add("--mgm-attention", required=True, nargs="+", help="attention/1 folders by MGM, one per shard")
    add("--text-scores", required=True, help="text_scores/1 folder of cluster_scoring")
    add("--image-root-uri", default="", help="folder or URI of the images, for the report's galleries")
    add("--ratio", type=float, default=defaults.RATIO, help="share of the records to select, in (0, 1]")
    add("--num-samples", type=int, default=defaults.NUM_SAMPLES, help='exact number to select; 0 means "use ratio"')
    add("--alpha", type=float, default=defaults.ALPHA, help="weight of the text side, in [0, 1]")
    add("--temperature", type=float, default=defaults.TEMPERATURE, help="of the softmax, above 0; small is steep")
    add("--sampler", default=defaults.SAMPLER, help="gumbel, reference (numpy's draw, bit for bit) or top")
    add("--missing-iou", default=defaults.MISSING_IOU, help="text (rank by text alone), reference (0) or exclude")
    add("--text-normalization", default=defaults.TEXT_NORMALIZATION, help="reference (min-max) or rank")
    add("--top-percent", type=float, default=defaults.TOP_PERCENT, help="share of a map that counts as looked at")
    add(
        "--stratify", default=defaults.STRATIFY, help='"source": draw within each source in proportion; empty: over all'
    )
    add(
        "--max-reject-fraction",
        type=float,
        default=defaults.MAX_REJECT_FRACTION,
        help="largest accepted share of records whose picture failed or that no attention part holds",
    )
    add("--seed", type=int, default=defaults.SEED, help="of the draw and of the random control")
    add("--selected", required=True, help="LLaVA JSON to write")
    add("--scores", required=True, help="scores/1 folder to write")
    add("--report", required=True, help="HTML page to write")
    add("--summary", required=True, help="JSON to write: counts, tilt, parameters")
    add("--random", default="", help="LLaVA JSON to write: a random control of the same size")
    add("--kmeans", default="", help="kmeans/1 folder of cluster_scoring, for the report's page on clusters")
    options = vars(parser.parse_args(argv))

    def work() -> StageResult:
        # Here, not at the top: --help shall not wait for pyarrow and matplotlib.
        from components.joint_selection.stage import JointSelectionConfig, run

        return run(JointSelectionConfig(**options))

    return run_stage(work)


if __name__ == "__main__":
    sys.exit(main())

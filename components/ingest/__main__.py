"""The ingest stage from a shell."""

import sys

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the stage, return the exit code."""
    parser = stage_parser(
        "ingest", "Read a LLaVA data set, check every record and its picture, and number the usable ones."
    )
    parser.add_argument(
        "--dataset-uri",
        required=True,
        help="path or URI of a LLaVA data set: a JSON list or one JSON object a line, gzip'ed or not",
    )
    parser.add_argument(
        "--image-root-uri",
        required=True,
        help='folder or URI that the records\' images are relative to; "" if no record has an image',
    )
    parser.add_argument(
        "--max-reject-fraction",
        type=float,
        default=defaults.MAX_REJECT_FRACTION,
        help="largest accepted share of unusable records, 0 to 1; above it the stage fails",
    )
    parser.add_argument("--records", required=True, help="output folder: the usable records (records/1)")
    parser.add_argument(
        "--rejects", required=True, help="output file: one JSON line per unusable record, with its reason"
    )
    arguments = parser.parse_args(argv)

    from components.ingest.stage import IngestConfig, run

    return run_stage(lambda: run(IngestConfig(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())

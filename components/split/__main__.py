"""The split stage from a shell."""

import sys

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the stage, print the shards, return the exit code."""
    parser = stage_parser(
        "split",
        "Divide the records into shards, all records of one image in the same; prints the shards, one a line.",
    )
    parser.add_argument("--records", required=True, help="input folder: the records of ingest (records/1)")
    parser.add_argument(
        "--num-shards",
        type=int,
        default=defaults.NUM_SHARDS,
        help="how many shards, 1 to 64; some are empty if there are few images",
    )
    parser.add_argument("--shards", required=True, help="output folder: one folder of records/1 per shard")
    arguments = parser.parse_args(argv)

    from components.split.stage import SplitConfig, run, shard_names
    from free2ds_common.result import StageResult

    def work() -> StageResult:
        result = run(SplitConfig(**vars(arguments)))
        for name in shard_names(arguments.num_shards):
            print(f"{arguments.shards.rstrip('/')}/{name}")
        return result

    return run_stage(work)


if __name__ == "__main__":
    sys.exit(main())

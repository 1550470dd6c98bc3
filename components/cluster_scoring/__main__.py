"""Command line of cluster_scoring."""

import sys
from collections.abc import Sequence

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = stage_parser("cluster_scoring", "How typical each record's messages are, by k-means over all of them.")
    parser.add_argument("--features", required=True, nargs="+", help="folder(s) of bert_features, one per part")
    parser.add_argument("--num-clusters", type=int, default=defaults.NUM_CLUSTERS, help="k-means clusters")
    parser.add_argument("--num-iterations", type=int, default=defaults.NUM_ITERATIONS, help="k-means iterations")
    parser.add_argument("--seed", type=int, default=defaults.SEED, help="of k-means")
    parser.add_argument("--scores", required=True, help="text_scores/1 folder to write")
    parser.add_argument("--kmeans", default="", help="kmeans/1 folder to write: centroids, sizes, typical messages")
    options = vars(parser.parse_args(argv))

    def work() -> StageResult:
        # Here, not at the top: --help shall not wait for faiss.
        from components.cluster_scoring.stage import ClusterScoringConfig, run

        return run(ClusterScoringConfig(**options))

    return run_stage(work)


if __name__ == "__main__":
    sys.exit(main())

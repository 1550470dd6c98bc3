"""Command line of bert_features."""

import sys
from collections.abc import Sequence

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    parser = stage_parser("bert_features", "BERT embeddings of the distinct human messages, and who said them.")
    parser.add_argument("--records", required=True, help="records/1 folder of ingest")
    parser.add_argument("--model", default=defaults.BERT_MODEL, help="encoder: folder, object-store URI or hub id")
    parser.add_argument("--revision", default=defaults.REVISION, help="hub branch or commit; unused for a folder")
    parser.add_argument(
        "--batch-tokens", type=int, default=defaults.BERT_BATCH_TOKENS, help="most tokens of one forward pass"
    )
    parser.add_argument(
        "--dtype", default=defaults.DTYPE, help="auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16"
    )
    parser.add_argument("--part", default="0/1", help="i/n: only the messages whose hash falls into part i of n")
    parser.add_argument("--features", required=True, help="folder to write: messages and turns")
    options = vars(parser.parse_args(argv))

    def work() -> StageResult:
        # Here, not at the top: --help shall not wait for torch.
        from components.bert_features.stage import BertFeaturesConfig, run

        return run(BertFeaturesConfig(**options))

    return run_stage(work)


if __name__ == "__main__":
    sys.exit(main())

"""The command line of both attention stages."""

from collections.abc import Callable, Sequence

from free2ds_common import defaults
from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.result import StageResult


def attention_main(
    model_type: str, title: str, default_model: str, argv: Sequence[str] | None, stage_run: Callable
) -> int:
    """Parse the options of an attention stage and run it.

    Args:
        model_type: The stage's own; the stage's name is `<model_type>_attention`.
        title: The model's name, for the help.
        default_model: Hub id.
        argv: Arguments; None takes the process's.
        stage_run: Returns the stage's `run`; called after parsing, since it imports torch.
    """
    parser = stage_parser(
        f"{model_type}_attention", f"Where {title} looks when it is asked each record's question: one map per record."
    )
    parser.add_argument(
        "--shard", required=True, help="records/1 folder: one shard of split, or all of ingest's records"
    )
    parser.add_argument(
        "--image-root-uri", required=True, help="folder or URI that the records' images are relative to"
    )
    parser.add_argument("--model", default=default_model, help="model folder, object-store URI or hub id")
    parser.add_argument("--revision", default=defaults.REVISION, help="hub branch or commit; unused for a folder")
    parser.add_argument(
        "--model-type",
        default=model_type,
        help=f"{model_type}, or auto: any transformers image-text-to-text model with a fixed square of vision tokens",
    )
    parser.add_argument(
        "--prompt", default=defaults.PROMPT, help="method, or (with --model-type auto) chat: the model's own template"
    )
    parser.add_argument(
        "--vision-tower", default="", help="CLIP encoder, when the model's own entry does not lead to it"
    )
    parser.add_argument(
        "--vision-tower-aux", default="", help="MGM's second encoder (ConvNeXt, open_clip layout), likewise"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=defaults.MAX_NEW_TOKENS, help="longest answer, EOS included"
    )
    parser.add_argument("--batch-size", type=int, default=defaults.ATTENTION_BATCH_SIZE, help="most answers in flight")
    parser.add_argument(
        "--dtype", default=defaults.DTYPE, help="auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16"
    )
    parser.add_argument("--attention", required=True, help="attention/1 folder to write")
    options = vars(parser.parse_args(argv))

    def work() -> StageResult:
        from free2ds_common.attention.stage import AttentionConfig

        return stage_run()(AttentionConfig(**options))

    return run_stage(work)

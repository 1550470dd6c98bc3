"""Where LLaVA-1.5 looks: the shared attention stage with LLaVA-1.5's loader."""

from components.llava_attention.model import load_llava
from free2ds_common.attention.prompts import LLAVA_SYSTEM
from free2ds_common.attention.stage import AttentionConfig, run_attention
from free2ds_common.result import StageResult


def run(config: AttentionConfig) -> StageResult:
    """Write a map per record of the shard; errors as in `run_attention`."""
    return run_attention(config, "llava", LLAVA_SYSTEM, load_llava)

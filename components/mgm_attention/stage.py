"""Where MGM looks: the shared attention stage with MGM's loader."""

from components.mgm_attention.model import load_mgm
from free2ds_common.attention.prompts import MGM_SYSTEM
from free2ds_common.attention.stage import AttentionConfig, run_attention
from free2ds_common.result import StageResult


def run(config: AttentionConfig) -> StageResult:
    """Write a map per record of the shard; errors as in `run_attention`."""
    return run_attention(config, "mgm", MGM_SYSTEM, load_mgm)

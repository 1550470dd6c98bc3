"""Where MGM looks: the shared attention stage with MGM's loader."""

import logging
from functools import partial

from components.mgm_attention.config import MgmAttentionConfig
from components.mgm_attention.model import load_mgm
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.inference.prompts import MGM_SYSTEM
from free2ds_common.result import StageResult

logger = logging.getLogger(__name__)


def run(config: MgmAttentionConfig) -> StageResult:
    """Write a map per record of the shard; errors as in `run_attention`."""
    load = partial(load_mgm, vision_tower=config.vision_tower, vision_tower_aux=config.vision_tower_aux)
    return run_attention(config, MGM_SYSTEM, load, logger)

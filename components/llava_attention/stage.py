"""Where LLaVA-1.5 looks: the shared attention stage with LLaVA-1.5's loader."""

import logging
from functools import partial

from components.llava_attention.config import LlavaAttentionConfig
from components.llava_attention.model import load_llava
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.result import StageResult

logger = logging.getLogger(__name__)


def run(config: LlavaAttentionConfig) -> StageResult:
    """Write a map per record of the shard; errors as in `run_attention`."""
    load = partial(load_llava, vision_tower=config.vision_tower)
    return run_attention(config, LLAVA_SYSTEM, load, logger)

"""Settings and ports of the llava_attention stage."""

from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.settings import AttentionConfig, AttentionSettings


@dataclass(frozen=True, kw_only=True)
class LlavaAttentionSettings(AttentionSettings):
    """Settings of the stage; only the defaults differ from the shared ones.

    Attributes:
        model: Folder, object-store URI or hub id of LLaVA-1.5.
        model_type: llava, or auto for another image-text-to-text model of transformers on this side.
    """

    OWN_TYPE: ClassVar[str] = "llava"
    SHORT_NAME: ClassVar[str] = "LLaVA"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = (
        "LlavaForConditionalGeneration",
        "LlavaLlamaForCausalLM",
        "LlavaLlamaModel",
    )

    model: str = "llava-hf/llava-1.5-7b-hf"
    model_type: str = OWN_TYPE


@dataclass(frozen=True, kw_only=True)
class LlavaAttentionConfig(LlavaAttentionSettings, AttentionConfig):
    """Record where LLaVA looks while it answers each question of a shard."""

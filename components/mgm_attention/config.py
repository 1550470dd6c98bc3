"""Settings and ports of the mgm_attention stage."""

from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.settings import AttentionConfig, AttentionSettings


@dataclass(frozen=True, kw_only=True)
class MgmAttentionSettings(AttentionSettings):
    """Settings of the stage: the shared ones and MGM's second encoder.

    Attributes:
        model: Folder, object-store URI or hub id of MGM.
        model_type: mgm, or auto for another image-text-to-text model of transformers on this side.
        vision_tower_aux: Its ConvNeXt encoder, where the model's own entry does not lead to it; empty otherwise.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (*AttentionSettings.OPTIONS, "vision_tower_aux")
    OWN_TYPE: ClassVar[str] = "mgm"
    SHORT_NAME: ClassVar[str] = "MGM"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("MGMLlamaForCausalLM", "MiniGeminiLlamaForCausalLM")

    model: str = "YanweiLi/MGM-7B"
    model_type: str = OWN_TYPE
    vision_tower_aux: str = ""


@dataclass(frozen=True, kw_only=True)
class MgmAttentionConfig(MgmAttentionSettings, AttentionConfig):
    """Record where MGM looks while it answers each question of a shard."""

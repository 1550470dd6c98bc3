"""Kubeflow ports of the mgm_attention stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-mgm-attention:dev", install_kfp_package=False)
def mgm_attention(
    shard: dsl.Input[dsl.Dataset],
    attention: dsl.Output[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    model_type: str,
    prompt: str,
    vision_tower: str,
    vision_tower_aux: str,
    max_new_tokens: int,
    batch_size: int,
    dtype: str,
    cache_uri: str,
    require_gpu: bool,
    gpu_count: str,
    code_version: str,
) -> None:
    """Record where MGM looks while it answers each question of a shard."""
    from components.mgm_attention.config import MgmAttentionConfig
    from components.mgm_attention.stage import run
    from free2ds_common.kfp_task import run_task

    config = MgmAttentionConfig(
        shard=shard.path,
        image_root_uri=image_root_uri,
        model=model,
        revision=revision,
        model_type=model_type,
        prompt=prompt,
        vision_tower=vision_tower,
        vision_tower_aux=vision_tower_aux,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
        cache_uri=cache_uri,
        require_gpu=require_gpu and gpu_count != "0",
        attention=attention.path,
    )
    versions = {"image_root_version": image_root_version, "code_version": code_version}
    run_task("mgm_attention", lambda: run(config), versions, attention=attention)

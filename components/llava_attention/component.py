"""Kubeflow ports of the llava_attention stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-llava-attention:dev", install_kfp_package=False)
def llava_attention(
    shard: dsl.Input[dsl.Dataset],
    attention: dsl.Output[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    options: str,
    cache_uri: str,
    gpu_count: str,
) -> None:
    """Record where LLaVA looks while it answers each question of a shard."""
    from components.llava_attention.config import LlavaAttentionConfig
    from components.llava_attention.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = LlavaAttentionConfig(
        **read_options(LlavaAttentionConfig, options),
        shard=shard.path,
        image_root_uri=image_root_uri,
        model=model,
        revision=revision,
        cache_uri=cache_uri,
        require_gpu=gpu_count != "0",
        attention=attention.path,
    )
    versions = {"image_root_version": image_root_version}
    run_task("llava_attention", lambda: run(config), versions, attention=attention)

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
    options: str,
    cache_uri: str,
    gpu_count: str,
) -> None:
    """Record where MGM looks while it answers each question of a shard."""
    from components.mgm_attention.config import MgmAttentionConfig
    from components.mgm_attention.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = MgmAttentionConfig(
        **read_options(MgmAttentionConfig, options),
        shard=shard.path,
        image_root_uri=image_root_uri,
        model=model,
        revision=revision,
        cache_uri=cache_uri,
        require_gpu=gpu_count != "0",
        attention=attention.path,
    )
    versions = {"image_root_version": image_root_version}
    run_task("mgm_attention", lambda: run(config), versions, attention=attention)

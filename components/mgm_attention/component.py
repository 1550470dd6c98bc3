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
    code_version: str,
):
    """Record where MGM looks while it answers each question of a shard.

    Args:
        shard: records/1 of one shard.
        attention: attention/1, one row per record; without a map where the outcome says why.
        image_root_uri: The folder that the records' images are relative to.
        image_root_version: Any text that changes when the pictures change; decides the cache.
        model: Local folder, object-store URI or hub id of the model.
        revision: Branch, tag or commit of a hub id; also decides the cache of a folder or URI.
        model_type: mgm, or auto for any transformers image-text-to-text model with a fixed square of vision tokens.
        prompt: method, or (with model_type auto) chat for the model's own chat template.
        vision_tower: Its CLIP encoder, when the model's own entry does not lead to it; empty otherwise.
        vision_tower_aux: Its ConvNeXt encoder, likewise.
        max_new_tokens: Most tokens generated per record.
        batch_size: Records that generate together.
        dtype: Number format of the model: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.
    """
    from components.mgm_attention.stage import run
    from free2ds_common.attention.stage import AttentionConfig
    from free2ds_common.kfp_output import run_component

    config = AttentionConfig(
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
        attention=attention.path,
    )
    versions = {"image_root_version": image_root_version, "code_version": code_version}
    run_component(lambda: run(config), versions, attention=attention)

"""Kubeflow ports of the bert_features stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-bert-features:dev", install_kfp_package=False)
def bert_features(
    records: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
    model: str,
    revision: str,
    batch_tokens: int,
    dtype: str,
    cache_uri: str,
    require_gpu: bool,
    gpu_count: str,
    code_version: str,
) -> None:
    """Embed every distinct human message once."""
    from components.bert_features.config import BertFeaturesConfig
    from components.bert_features.stage import run
    from free2ds_common.kfp_task import run_task

    config = BertFeaturesConfig(
        records=records.path,
        model=model,
        revision=revision,
        batch_tokens=batch_tokens,
        dtype=dtype,
        cache_uri=cache_uri,
        require_gpu=require_gpu and gpu_count != "0",
        features=features.path,
    )
    run_task("bert_features", lambda: run(config), {"code_version": code_version}, features=features)

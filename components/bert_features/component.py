"""Kubeflow ports of the bert_features stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-bert-features:dev", install_kfp_package=False)
def bert_features(
    records: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
    model: str,
    revision: str,
    options: str,
    cache_uri: str,
    gpu_count: str,
) -> None:
    """Embed every distinct human message once."""
    from components.bert_features.config import BertFeaturesConfig
    from components.bert_features.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = BertFeaturesConfig(
        **read_options(BertFeaturesConfig, options),
        records=records.path,
        model=model,
        revision=revision,
        cache_uri=cache_uri,
        require_gpu=gpu_count != "0",
        features=features.path,
    )
    run_task("bert_features", lambda: run(config), {}, features=features)

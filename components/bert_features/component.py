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
    code_version: str,
):
    """Embed every distinct human message once.

    Args:
        records: records/1.
        features: messages (text_messages/1, the embeddings) and turns (text_turns/1, who said which message).
        model: Local folder, object-store URI or hub id of the BERT model.
        revision: Branch, tag or commit of a hub id; also decides the cache of a folder or URI.
        batch_tokens: Most tokens of one forward pass, padding included; on a CPU a pass may be smaller.
        dtype: Number format of the model: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.
    """
    from components.bert_features.stage import BertFeaturesConfig, run
    from free2ds_common.kfp_output import run_component

    config = BertFeaturesConfig(
        records=records.path,
        model=model,
        revision=revision,
        batch_tokens=batch_tokens,
        dtype=dtype,
        part="0/1",
        features=features.path,
    )
    run_component(lambda: run(config), {"code_version": code_version}, features=features)

"""Kubeflow ports of the split stage."""

from typing import List  # noqa: UP035 - the KFP compiler reads typing.List

from kfp import dsl


@dsl.component(base_image="free2ds-split:dev", install_kfp_package=False)
def split(
    records: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
    num_shards: int,
    code_version: str,
) -> List[str]:  # noqa: UP006
    """Divide the records into shards; all records of one image stay together.

    Args:
        records: records/1.
        shards: One folder of records/1 per shard.
        num_shards: How many shards; each is one turn of the loop over the two models.
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.

    Returns:
        The URI of each shard: the loop imports it, so a pod copies only its own shard.
    """
    from components.split.stage import SplitConfig, run, shard_names
    from free2ds_common.kfp_output import run_component

    config = SplitConfig(records=records.path, num_shards=num_shards, shards=shards.path)
    run_component(lambda: run(config), {"code_version": code_version}, shards=shards)
    return [f"{shards.uri}/{name}" for name in shard_names(num_shards)]

"""Kubeflow ports of the split stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-split:dev", install_kfp_package=False)
def split(
    records: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
    num_shards: int,
    records_per_shard: int,
) -> list[str]:
    """Divide the records into shards; all records of one picture stay together."""
    from components.split.config import SplitConfig
    from components.split.stage import run
    from free2ds_common.kfp_task import run_task

    config = SplitConfig(
        records=records.path, num_shards=num_shards, records_per_shard=records_per_shard, shards=shards.path
    )
    result = run_task("split", lambda: run(config), {}, shards=shards)
    return [f"{shards.uri}/{name}" for name in result.metadata["shards"]]

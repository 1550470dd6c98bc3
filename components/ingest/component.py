"""Kubeflow ports of the ingest stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-ingest:dev", install_kfp_package=False)
def ingest(
    records: dsl.Output[dsl.Dataset],
    rejects: dsl.Output[dsl.Artifact],
    dataset_uri: str,
    dataset_version: str,
    image_root_uri: str,
    image_root_version: str,
    max_reject_fraction: float,
    code_version: str,
):
    """Read a LLaVA data set, check every record and its picture, and number the usable ones.

    Args:
        records: records/1, one row per usable record.
        rejects: JSON lines, one per unusable record, with its reason.
        dataset_uri: LLaVA JSON or JSONL file, gzip too.
        dataset_version: Any text that changes when the bytes behind dataset_uri change; decides the cache.
        image_root_uri: The folder that the records' images are relative to.
        image_root_version: Any text that changes when the pictures change; decides the cache.
        max_reject_fraction: Largest accepted share of unusable records, in [0, 1].
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.
    """
    from components.ingest.stage import IngestConfig, run
    from free2ds_common.kfp_output import run_component

    config = IngestConfig(
        dataset_uri=dataset_uri,
        image_root_uri=image_root_uri,
        max_reject_fraction=max_reject_fraction,
        records=records.path,
        rejects=rejects.path,
    )
    versions = {
        "dataset_version": dataset_version,
        "image_root_version": image_root_version,
        "code_version": code_version,
    }
    run_component(lambda: run(config), versions, records=records, rejects=rejects)

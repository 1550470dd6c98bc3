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
) -> None:
    """Read a LLaVA data set, check every record and its picture, and number the usable ones."""
    from components.ingest.config import IngestConfig
    from components.ingest.stage import run
    from free2ds_common.kfp_task import run_task

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
    }
    run_task("ingest", lambda: run(config), versions, records=records, rejects=rejects)

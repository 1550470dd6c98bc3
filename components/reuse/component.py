"""Kubeflow ports of the reuse stage, and the step behind it that says what is needed of a cluster."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="free2ds-reuse:dev", install_kfp_package=False)
def reuse(
    records: dsl.Input[dsl.Dataset],
    llava_finished: dsl.Output[dsl.Dataset],
    mgm_finished: dsl.Output[dsl.Dataset],
    llava_missing: dsl.Output[dsl.Dataset],
    mgm_missing: dsl.Output[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    llava_model: str,
    llava_revision: str,
    llava_options: str,
    mgm_model: str,
    mgm_revision: str,
    mgm_options: str,
    on_gpu: bool,
    cache_uri: str,
) -> NamedTuple("New", [("llava_new", str), ("mgm_new", str)]):
    """Divide the records, for each model, into those that earlier runs have scored and those that are left over."""
    from components.reuse.config import ReuseConfig
    from components.reuse.stage import outputs, run
    from free2ds_common.kfp_task import run_task

    config = ReuseConfig(
        records=records.path,
        image_root_uri=image_root_uri,
        llava_model=llava_model,
        llava_revision=llava_revision,
        llava_options=llava_options,
        mgm_model=mgm_model,
        mgm_revision=mgm_revision,
        mgm_options=mgm_options,
        on_gpu=on_gpu,
        cache_uri=cache_uri,
        llava_finished=llava_finished.path,
        mgm_finished=mgm_finished.path,
        llava_missing=llava_missing.path,
        mgm_missing=mgm_missing.path,
    )
    result = run_task(
        "reuse",
        lambda: run(config),
        {"image_root_version": image_root_version},
        llava_finished=llava_finished,
        mgm_finished=mgm_finished,
        llava_missing=llava_missing,
        mgm_missing=mgm_missing,
    )
    return tuple(outputs(result).values())


@dsl.component(base_image="free2ds-reuse:dev", install_kfp_package=False)
def demand(
    llava_new: str,
    mgm_new: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, str]],
) -> NamedTuple(
    "Demand",
    [
        ("llava_gpu_count", str),
        ("llava_gpu_node_selector", dict),
        ("llava_gpu_tolerations", list),
        ("mgm_gpu_count", str),
        ("mgm_gpu_node_selector", dict),
        ("mgm_gpu_tolerations", list),
    ],
):
    """Ask for GPUs and their nodes for a model that has something new to look at."""
    found: list[object] = []
    for new in (llava_new, mgm_new):
        found += [gpu_count, gpu_node_selector, gpu_tolerations] if new == "yes" else ["0", {}, []]
    return tuple(found)

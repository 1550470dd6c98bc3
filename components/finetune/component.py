"""Kubeflow ports of the finetune stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-finetune:dev", install_kfp_package=False)
def finetune(
    selected: dsl.Input[dsl.Dataset],
    random: dsl.Input[dsl.Dataset],
    everything: dsl.Input[dsl.Dataset],
    tuned_model: dsl.Output[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    training: dsl.Output[dsl.Metrics],
    arm: str,
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    options: str,
    max_reject_fraction: float,
    cache_uri: str,
    gpu_count: str,
) -> None:
    """Train a model with LoRA on the records of a selection."""
    from components.finetune.config import FinetuneConfig
    from components.finetune.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    # One task of a loop: which of its inputs it learns from, a colon, and its seed.
    learnt, _, seed = arm.partition(":")
    config = FinetuneConfig(
        # In place of one among the options: resolve has found out what that is now.
        **(read_options(FinetuneConfig, options) | {"revision": revision}),
        selected={"selected": selected, "random": random, "everything": everything}[learnt].path,
        image_root_uri=image_root_uri,
        model=model,
        max_reject_fraction=max_reject_fraction,
        cache_uri=cache_uri,
        seed=int(seed),
        require_gpu=gpu_count != "0",
        tuned_model=tuned_model.path,
        adapter=adapter.path,
        report=report.path,
    )
    versions = {"image_root_version": image_root_version}
    run_task(
        "finetune",
        lambda: run(config),
        versions,
        tuned_model=tuned_model,
        adapter=adapter,
        report=report,
        training=training,
    )

"""Kubeflow ports of the finetune stage; long, because Kubeflow needs each one spelled out."""

from kfp import dsl


@dsl.component(base_image="free2ds-finetune:dev", install_kfp_package=False)
def finetune(
    selected: dsl.Input[dsl.Dataset],
    tuned_model: dsl.Output[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    training: dsl.Output[dsl.Metrics],
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    model_type: str,
    dtype: str,
    pictures: str,
    lora_rank: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_targets: str,
    projector: str,
    learning_rate: float,
    projector_learning_rate: float,
    warmup_fraction: float,
    num_epochs: int,
    max_steps: int,
    batch_size: int,
    micro_batch_size: int,
    max_length: int,
    gradient_checkpointing: bool,
    checkpoint_steps: int,
    num_processes: int,
    picture_workers: int,
    max_reject_fraction: float,
    cache_uri: str,
    seed: int,
    require_gpu: bool,
    gpu_count: str,
    code_version: str,
) -> None:
    """Train a model with LoRA on the records of a selection."""
    from components.finetune.config import FinetuneConfig
    from components.finetune.stage import run
    from free2ds_common.kfp_task import run_task

    config = FinetuneConfig(
        selected=selected.path,
        image_root_uri=image_root_uri,
        model=model,
        revision=revision,
        model_type=model_type,
        dtype=dtype,
        pictures=pictures,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        projector=projector,
        learning_rate=learning_rate,
        projector_learning_rate=projector_learning_rate,
        warmup_fraction=warmup_fraction,
        num_epochs=num_epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=max_length,
        gradient_checkpointing=gradient_checkpointing,
        checkpoint_steps=checkpoint_steps,
        num_processes=num_processes,
        picture_workers=picture_workers,
        max_reject_fraction=max_reject_fraction,
        cache_uri=cache_uri,
        seed=seed,
        require_gpu=require_gpu and gpu_count != "0",
        tuned_model=tuned_model.path,
        adapter=adapter.path,
        report=report.path,
    )
    versions = {"image_root_version": image_root_version, "code_version": code_version}
    run_task(
        "finetune",
        lambda: run(config),
        versions,
        tuned_model=tuned_model,
        adapter=adapter,
        report=report,
        training=training,
    )

"""Kubeflow ports of the evaluate stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-evaluate:dev", install_kfp_package=False)
def evaluate(
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    benchmarks: str,
    benchmarks_version: str,
    model: str,
    revision: str,
    prompt: str,
    max_new_tokens: int,
    batch_size: int,
    dtype: str,
    require_gpu: bool,
    gpu_count: str,
    max_reject_fraction: float,
    baseline_uri: str,
    resamples: int,
    seed: int,
    code_version: str,
    tuned: dsl.Input[dsl.Model] = None,
) -> None:
    """Ask a model the questions of benchmarks and judge every answer."""
    from components.evaluate.config import EvaluateConfig
    from components.evaluate.stage import run
    from free2ds_common.kfp_task import run_task

    config = EvaluateConfig(
        benchmarks=benchmarks,
        # An artifact of this run, where there is one, takes the place of the setting.
        model=tuned.path if tuned else model,
        revision=revision,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
        require_gpu=require_gpu and gpu_count != "0",
        max_reject_fraction=max_reject_fraction,
        baseline_uri=baseline_uri,
        resamples=resamples,
        seed=seed,
        evaluation=evaluation.path,
        metrics=metrics.path,
    )
    versions = {"benchmarks_version": benchmarks_version, "code_version": code_version}
    run_task("evaluate", lambda: run(config), versions, evaluation=evaluation, metrics=metrics)

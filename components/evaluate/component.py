"""Kubeflow ports of the evaluate stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-evaluate:dev", install_kfp_package=False)
def evaluate(
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    benchmarks: str,
    benchmark_versions: str,
    model: str,
    revision: str,
    label: str,
    options: str,
    resamples: int,
    seed: int,
    gpu_count: str,
    tuned: dsl.Input[dsl.Model] = None,
) -> None:
    """Ask a model the questions of benchmarks and judge every answer."""
    from components.evaluate.config import EvaluateConfig
    from components.evaluate.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = EvaluateConfig(
        **read_options(EvaluateConfig, options),
        benchmarks=benchmarks,
        benchmark_versions=benchmark_versions,
        # An artifact of this run, where there is one, takes the place of the setting.
        model=tuned.path if tuned else model,
        revision="" if tuned else revision,
        label=label,
        require_gpu=gpu_count != "0",
        resamples=resamples,
        seed=seed,
        evaluation=evaluation.path,
        metrics=metrics.path,
    )
    versions = {"benchmark_versions": benchmark_versions}
    run_task("evaluate", lambda: run(config), versions, evaluation=evaluation, metrics=metrics)

"""Kubeflow ports of the verdict stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-verdict:dev", install_kfp_package=False)
def verdict(
    untuned: dsl.Input[dsl.Dataset],
    evaluations: dsl.Input[list[dsl.Dataset]],
    summary: dsl.Input[dsl.Metrics],
    comparison: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    arms: list[str],
    resamples: int,
    seed: int,
) -> None:
    """Say from evaluations whether training on the selection beat training on a random draw."""
    from components.verdict.config import VerdictConfig
    from components.verdict.stage import run
    from free2ds_common.kfp_task import run_task

    config = VerdictConfig(
        untuned=untuned.path,
        evaluations=[evaluation.path for evaluation in evaluations],
        summary=summary.path,
        comparison=comparison.path,
        report=report.path,
        arms=arms,
        resamples=resamples,
        seed=seed,
    )
    run_task("verdict", lambda: run(config), {}, comparison=comparison, report=report)

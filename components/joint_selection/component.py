"""Kubeflow ports of the joint_selection stage; long, because Kubeflow needs each one spelled out."""

from kfp import dsl


@dsl.component(base_image="free2ds-joint-selection:dev", install_kfp_package=False)
def joint_selection(
    records: dsl.Input[dsl.Dataset],
    llava_attention: dsl.Input[list[dsl.Dataset]],
    mgm_attention: dsl.Input[list[dsl.Dataset]],
    llava_finished: dsl.Input[dsl.Dataset],
    mgm_finished: dsl.Input[dsl.Dataset],
    text_scores: dsl.Input[dsl.Dataset],
    kmeans: dsl.Input[dsl.Dataset],
    selected: dsl.Output[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Metrics],
    random: dsl.Output[dsl.Dataset],
    overview: dsl.Output[dsl.Markdown],
    baseline: dsl.Output[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    ratio: float,
    num_samples: int,
    alpha: float,
    previous_selected_uri: str,
    previous_selected_version: str,
    max_reject_fraction: float,
    seed: int,
    options: str,
) -> None:
    """Join where the two models look with how typical the text is, and draw the records worth training on."""
    from components.joint_selection.config import JointSelectionConfig
    from components.joint_selection.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = JointSelectionConfig(
        **read_options(JointSelectionConfig, options),
        records=records.path,
        llava_attention=[part.path for part in (*llava_attention, llava_finished)],
        mgm_attention=[part.path for part in (*mgm_attention, mgm_finished)],
        text_scores=text_scores.path,
        kmeans=kmeans.path,
        image_root_uri=image_root_uri,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        previous_selected_uri=previous_selected_uri,
        max_reject_fraction=max_reject_fraction,
        seed=seed,
        selected=selected.path,
        scores=scores.path,
        report=report.path,
        summary=summary.path,
        random=random.path,
        overview=overview.path,
        baseline=baseline.path,
    )
    versions = {"image_root_version": image_root_version, "previous_selected_version": previous_selected_version}
    run_task(
        "joint_selection",
        lambda: run(config),
        versions,
        selected=selected,
        scores=scores,
        report=report,
        summary=summary,
        random=random,
        overview=overview,
        baseline=baseline,
    )

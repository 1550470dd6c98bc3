"""Kubeflow ports of the joint_selection stage."""

from typing import List  # noqa: UP035 - the KFP compiler reads typing.List

from kfp import dsl


@dsl.component(base_image="free2ds-joint-selection:dev", install_kfp_package=False)
def joint_selection(
    records: dsl.Input[dsl.Dataset],
    llava_attention: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    mgm_attention: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    text_scores: dsl.Input[dsl.Dataset],
    kmeans: dsl.Input[dsl.Dataset],
    selected: dsl.Output[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Metrics],
    random: dsl.Output[dsl.Dataset],
    overview: dsl.Output[dsl.Markdown],
    image_root_uri: str,
    image_root_version: str,
    ratio: float,
    num_samples: int,
    alpha: float,
    temperature: float,
    sampler: str,
    missing_iou: str,
    text_normalization: str,
    top_percent: float,
    stratify: str,
    max_reject_fraction: float,
    seed: int,
    code_version: str,
):
    """Join both signals and draw the records worth training on.

    Args:
        records: records/1.
        llava_attention: attention/1 of every shard, by LLaVA.
        mgm_attention: attention/1 of every shard, by MGM.
        text_scores: text_scores/1.
        kmeans: kmeans/1, for the report's table of clusters.
        selected: LLaVA JSON: the chosen records in input order, untouched but for unique_id.
        scores: scores/1, one row per record: every score, both outcomes, probability, selected.
        report: One self-contained HTML page.
        summary: JSON: counts, tilt, parameters; its scalars are metrics.
        random: LLaVA JSON of a random draw of the same size: the control to train against.
        overview: The report in a few lines.
        image_root_uri: The folder that the records' images are relative to; for the pictures in the report.
        image_root_version: Any text that changes when the pictures change; decides the cache.
        ratio: Share of the records to select, in (0, 1].
        num_samples: Exact number to select; 0 means "use ratio".
        alpha: Weight of the text side, in [0, 1].
        temperature: Of the softmax over the scores, above 0.
        sampler: gumbel, reference or top.
        missing_iou: What a record without an IoU gets: text, reference or exclude.
        text_normalization: reference or rank.
        top_percent: Share of an attention map's positions that are compared, in percent.
        stratify: source draws within each source in proportion; empty draws over all.
        max_reject_fraction: Largest accepted share of records that cannot be used or were not scored, in [0, 1].
        seed: Of the draw and of the random control.
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.
    """
    from components.joint_selection.stage import JointSelectionConfig, run
    from free2ds_common.kfp_output import run_component

    config = JointSelectionConfig(
        records=records.path,
        llava_attention=[shard.path for shard in llava_attention],
        mgm_attention=[shard.path for shard in mgm_attention],
        text_scores=text_scores.path,
        kmeans=kmeans.path,
        image_root_uri=image_root_uri,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        temperature=temperature,
        sampler=sampler,
        missing_iou=missing_iou,
        text_normalization=text_normalization,
        top_percent=top_percent,
        stratify=stratify,
        max_reject_fraction=max_reject_fraction,
        seed=seed,
        selected=selected.path,
        scores=scores.path,
        report=report.path,
        summary=summary.path,
        random=random.path,
        overview=overview.path,
    )
    versions = {"image_root_version": image_root_version, "code_version": code_version}
    run_component(
        lambda: run(config),
        versions,
        selected=selected,
        scores=scores,
        report=report,
        summary=summary,
        random=random,
        overview=overview,
    )

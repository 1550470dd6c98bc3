"""Joins where the models look with how typical the text is, and draws the records worth training on."""

import logging
import time
from dataclasses import replace

from components.joint_selection.changes import write_changes
from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.doubts import refuse_text_alone
from components.joint_selection.draw import record_noise
from components.joint_selection.inputs import Inputs, read_inputs
from components.joint_selection.outputs import (
    origins_of,
    write_baseline,
    write_records,
    write_scores,
    write_summary,
)
from components.joint_selection.rejected import Verdict, check_limits, judge
from components.joint_selection.report.markdown import write_overview
from components.joint_selection.report.page import write_report
from components.joint_selection.report.wording import tilt_in_words
from components.joint_selection.selection import Candidates, select
from components.joint_selection.summary import summarize
from free2ds_common.lineage import MADE_FROM, digests
from free2ds_common.result import StageResult
from free2ds_common.run_facts import run_facts

logger = logging.getLogger(__name__)


def run(config: JointSelectionConfig) -> StageResult:
    """Score every record, draw, and write selection, scores, report and summary.

    Args:
        config: Settings and ports.

    Raises:
        StageError: Wrong settings, inputs that do not belong together, pictures of which none can be compared, or fewer
            records than are to be drawn.

    Source:
        docs/method.md, sections 3 and 5; section 6 for what differs from the reference.
    """
    started = time.time()
    config.check()
    inputs = read_inputs(config)
    verdict = judge([side.outcome for side in inputs.sides], inputs.text.similarity)
    check_limits(verdict, inputs.unknown_ids, config.max_reject_fraction)
    refuse_text_alone(inputs, verdict)
    candidates = score(inputs, verdict, config.seed)
    selection = select(config, candidates)
    changes = write_changes(config.scores, config, inputs, selection)
    summary = summarize(config, inputs, verdict, candidates, selection, changes, run_facts(started))
    write_scores(config.scores, inputs, candidates, selection, summary)
    write_records(config.selected, inputs.dataset, selection.selected)
    write_records(config.random, inputs.dataset, selection.control)
    origins = origins_of(config)
    write_summary(config, summary, origins)
    if config.baseline:
        write_baseline(config.baseline, inputs, selection)
    write_report(config.report, inputs, candidates, selection, summary)
    if config.overview:
        write_overview(config.overview, summary)
    for sentence in summary.warnings:
        logger.warning("%s", sentence)
    for sentence in tilt_in_words(summary):
        logger.info("%s", sentence)
    result = summary.as_result()
    return replace(result, metadata={**result.metadata, MADE_FROM: digests(origins)})


def score(inputs: Inputs, verdict: Verdict, seed: int) -> Candidates:
    """Both signals of every record, and the noise that draws it."""
    return Candidates(
        iou=inputs.iou(),
        text_similarity=inputs.text.similarity,
        rejected=verdict.rejected,
        source=inputs.records.source,
        noise=record_noise(inputs.records.record_key, seed),
        normalization=inputs.text.manifest.get("normalization", {}),
    )

"""What tells a wrong setting from bad records: all of a shard failing alike."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from free2ds_common import outcomes
from free2ds_common.datasets import first_difference
from free2ds_common.errors import StageError
from free2ds_common.inference.asked import DECIDING
from free2ds_common.left_over import LeftOver
from free2ds_common.settings import AttentionConfig

# Of the answers, without a finite map: from here on a warning.
WARN_NON_FINITE_SHARE = 0.05


def require_promised(model: str, settings: Mapping[str, Any], promised: Mapping[str, Any]) -> None:
    """Refuse a model whose maps would not go with those that the run takes from the results store.

    Args:
        model: Its name.
        settings: Of the loaded model.
        promised: Those of the results; empty where none are taken.

    Raises:
        StageError: They differ.
    """
    if promised and (name := first_difference(settings, promised, DECIDING)):
        raise StageError(
            f"{model}: has {name} {settings[name]!r} here, but the finished results of this run have "
            f"{promised[name]!r}. Give the setting in the model's options, or another cache_uri."
        )


def require_a_usable_picture(
    config: AttentionConfig, records: Sequence[Mapping[str, Any]], by_outcome: Counter[str], left_over: LeftOver
) -> None:
    """Refuse a shard whose pictures all failed: that is a wrong setting, not bad pictures.

    Not where others are finished: what failed in earlier runs is all that may be left over.

    Raises:
        StageError: There are pictures, and none can be used.
    """
    with_image = sum(bool(record["image"]) for record in records)
    unusable = sum(by_outcome[outcome] for outcome in outcomes.IMAGE_FAILURES)
    if unusable and unusable == with_image and not left_over.answered:
        raise StageError(
            f"{config.image_root_uri}: none of the {with_image} pictures of this shard can be used. "
            "Check image_root_uri."
        )


def require_a_finite_map(
    config: AttentionConfig, by_outcome: Counter[str], dtype: str, left_over: LeftOver, log: logging.Logger
) -> None:
    """Refuse a shard without a finite map, and warn where many are missing; with `left_over` as above.

    Raises:
        StageError: There are answers, and the attention of all of them is NaN or infinite.
    """
    broken = by_outcome[outcomes.NON_FINITE]
    answered = answered_by_model(by_outcome)
    if not broken:
        return
    remedy = f"{dtype} may be too narrow for the model: try dtype bfloat16 or float32, or copy the model folder again."
    if broken == answered and not left_over.answered:
        raise StageError(f"{config.model}: the attention of all {answered} answers is NaN or infinite. {remedy}")
    if broken >= WARN_NON_FINITE_SHARE * answered:
        log.warning("the attention of %d of %d answers is NaN or infinite. %s", broken, answered, remedy)


def answered_by_model(by_outcome: Counter[str]) -> int:
    """Records that the model was asked about, in this run or an earlier one."""
    return by_outcome[outcomes.NON_FINITE] + by_outcome[outcomes.OK] + by_outcome[outcomes.EOS_ONLY]

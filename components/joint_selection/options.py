"""The options of a draw, which selection and sweep share."""

from collections.abc import Callable

from free2ds_common import defaults

# Of each: default, type, and help.
DRAW_OPTIONS: dict[str, tuple[object, Callable, str]] = {
    "alpha": (defaults.ALPHA, float, "weight of the text side, in [0, 1]"),
    "temperature": (defaults.TEMPERATURE, float, "of the softmax, above 0; small is steep"),
    "sampler": (defaults.SAMPLER, str, "gumbel, reference (numpy's draw, bit for bit) or top"),
    "missing-iou": (defaults.MISSING_IOU, str, "text (rank by text alone), reference (0) or exclude"),
    "text-normalization": (defaults.TEXT_NORMALIZATION, str, "reference (min-max) or rank"),
    "ratio": (defaults.RATIO, float, "share of the records to select, in (0, 1]"),
    "num-samples": (defaults.NUM_SAMPLES, int, 'exact number to select; 0 means "use ratio"'),
    "stratify": (defaults.STRATIFY, str, '"source": draw within each source in proportion; empty: over all'),
    "seed": (defaults.SEED, int, "of the draw and of the random control"),
}
# Those of which sweep takes several values.
SWEPT = ("alpha", "temperature", "sampler", "missing_iou", "text_normalization")

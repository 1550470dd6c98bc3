"""The fixed words of `outcome` in attention/1: why a record has a map, or has none."""

OK = "ok"
TEXT_ONLY = "text_only"  # no image: nothing to look at
EOS_ONLY = "eos_only"  # G = 1: the method defines no map
NO_QUESTION = "no_question"  # no human turn is directly followed by a gpt turn
PROMPT_TOO_LONG = "prompt_too_long"  # the prompt does not fit the model's context
NON_FINITE = "non_finite"  # NaN or infinity in the attention

NOT_SCORED = "not_scored"  # no attention part has a row for the record; never written by the attention stages

# The picture passed ingest but could not be used later: joint_selection rejects the record.
IMAGE_FAILURES = ("image_missing", "image_unreadable", "image_too_large", "image_outside_root")

ALL = (OK, TEXT_ONLY, EOS_ONLY, NO_QUESTION, PROMPT_TOO_LONG, NON_FINITE, NOT_SCORED, *IMAGE_FAILURES)

"""Why a record has an attention map or none: the values of `outcome` in attention/1 and of scores/2's two columns."""

OK = "ok"  # the only outcome with a map
TEXT_ONLY = "text_only"  # no picture: nothing to look at
EOS_ONLY = "eos_only"  # the answer is EOS alone, for which the method defines no map
NO_QUESTION = "no_question"  # no human turn is directly followed by a gpt turn
PROMPT_TOO_LONG = "prompt_too_long"  # the prompt does not fit the model's context
NON_FINITE = "non_finite"  # NaN or infinity in the attention

# In scores/2 only: no attention part has a row for the record.
NOT_SCORED = "not_scored"

# Also ingest's reasons for rejecting a record. As an outcome: the picture passed ingest but could not be used later,
# and joint_selection rejects the record.
IMAGE_FAILURES = ("image_missing", "image_unreadable", "image_too_large", "image_outside_root")

ALL = (OK, TEXT_ONLY, EOS_ONLY, NO_QUESTION, PROMPT_TOO_LONG, NON_FINITE, NOT_SCORED, *IMAGE_FAILURES)

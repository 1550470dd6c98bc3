"""The tables that stages hand on: column names, types and version. Change a table, raise its version."""

from dataclasses import dataclass

import pyarrow as pa

GRID = 24
POSITIONS = GRID * GRID


@dataclass(frozen=True)
class Schema:
    """A named, versioned table.

    Attributes:
        name: Name and version, "records/1".
        arrow: Columns, types and nullability.
    """

    name: str
    arrow: pa.Schema


def _columns(**types: pa.DataType) -> pa.Schema:
    """Columns in order; a trailing underscore in the keyword marks a column that may be null."""
    return pa.schema([pa.field(name.rstrip("_"), kind, nullable=name.endswith("_")) for name, kind in types.items()])


def attention_schema(positions: int = POSITIONS) -> Schema:
    """`attention/1` for maps of `positions` vision tokens (576 for LLaVA-1.5 and MGM).

    `num_steps` is G, the generated tokens with EOS (0 where nothing was generated); `map` sums to 1 and is null unless
    `outcome` is "ok" (see free2ds_common.outcomes).
    """
    return Schema(
        "attention/1",
        _columns(
            unique_id=pa.int64(),
            record_key=pa.string(),
            num_steps=pa.int32(),
            outcome=pa.string(),
            map_=pa.list_(pa.float32(), positions),
        ),
    )


def text_messages_schema(dimensions: int) -> Schema:
    """`text_messages/1`: one row per distinct human message, by its hex sha256; `embedding` float32 [dimensions]."""
    return Schema(
        "text_messages/1",
        _columns(message_key=pa.string(), message=pa.string(), embedding=pa.list_(pa.float32(), dimensions)),
    )


# unique_id: 1..N in input order (rejected records use up none). record_key: sha256 hex of the record's canonical JSON.
# question: method section 1, without the appended instruction; null where no human turn is followed by a gpt turn.
# messages: every human turn, cleaned as the method's section 4 says. raw: the record's own JSON.
RECORDS = Schema(
    "records/1",
    _columns(
        unique_id=pa.int64(),
        record_key=pa.string(),
        image_=pa.string(),
        source=pa.string(),
        question_=pa.string(),
        messages=pa.list_(pa.string()),
        raw=pa.string(),
    ),
)

# One row per human turn: who said which distinct message (hex sha256 of its text). turn counts the record's human turns
# from 0.
TEXT_TURNS = Schema(
    "text_turns/1",
    _columns(unique_id=pa.int64(), record_key=pa.string(), turn=pa.int32(), message_key=pa.string()),
)

# text_similarity: mean over the record's turns of 1 - d / max(d), in [0, 1].
TEXT_SCORES = Schema(
    "text_scores/1",
    _columns(unique_id=pa.int64(), record_key=pa.string(), num_turns=pa.int32(), text_similarity=pa.float64()),
)


def kmeans_schema(dimensions: int) -> Schema:
    """`kmeans/1`: one row per cluster; `num_turns` said its messages, `typical_message` is nearest to the centroid."""
    return Schema(
        "kmeans/1",
        _columns(
            cluster=pa.int32(),
            num_turns=pa.int64(),
            typical_message=pa.string(),
            centroid=pa.list_(pa.float32(), dimensions),
        ),
    )


# iou, image_score: null where a map is missing; text_similarity: null where cluster_scoring has none; image_score,
# text_score, combined: null outside the pool that is drawn from. image_score = 1 - minmax(iou); text_score likewise.
SCORES = Schema(
    "scores/1",
    _columns(
        unique_id=pa.int64(),
        record_key=pa.string(),
        source=pa.string(),
        iou_=pa.float64(),
        image_score_=pa.float64(),
        text_similarity_=pa.float64(),
        text_score_=pa.float64(),
        combined_=pa.float64(),
        probability=pa.float64(),
        llava_outcome=pa.string(),
        mgm_outcome=pa.string(),
        selected=pa.bool_(),
    ),
)

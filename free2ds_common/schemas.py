"""The tables that stages hand on: column names, types and version. To change a table is to raise its version."""

from dataclasses import dataclass

import pyarrow as pa

GRID = 24
POSITIONS = GRID * GRID


@dataclass(frozen=True)
class Schema:
    """A named, versioned table.

    Attributes:
        name: Name and version, "records/2".
        arrow: Columns, types and nullability.
    """

    name: str
    arrow: pa.Schema


def _columns(**types: pa.DataType) -> pa.Schema:
    """Columns in order; a keyword with a trailing underscore is a column that may be null."""
    return pa.schema([pa.field(name.rstrip("_"), kind, nullable=name.endswith("_")) for name, kind in types.items()])


def attention_schema(positions: int = POSITIONS) -> Schema:
    """`attention/1` for maps of `positions` vision tokens (576 for LLaVA-1.5 and MGM).

    `num_steps` is G, the number of generated tokens, EOS included (0 if nothing was generated). `map` sums to 1; it is
    null unless `outcome` is "ok" (see free2ds_common.outcomes).
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
    """`text_messages/1`: one row per distinct human message, its key the hex sha256 of its text, with its embedding."""
    return Schema(
        "text_messages/1",
        _columns(message_key=pa.string(), message=pa.string(), embedding=pa.list_(pa.float32(), dimensions)),
    )


# unique_id: 1..N over the usable records, in input order. record_key: hex sha256 of the record's canonical JSON.
# position: from 0 in the data set file, rejected records counted. id: the record's own, as text; null without one.
# image: path below the image root in normal form; null for a text-only record. source: where the record comes from.
# question: docs/method.md, section 1, without the appended instruction; null if no gpt turn follows a human turn.
# messages: every human turn, cleaned as in docs/method.md, section 4. raw: the record's own JSON, complete.
RECORDS = Schema(
    "records/2",
    _columns(
        unique_id=pa.int64(),
        record_key=pa.string(),
        position=pa.int64(),
        id_=pa.string(),
        image_=pa.string(),
        source=pa.string(),
        question_=pa.string(),
        messages=pa.list_(pa.string()),
        raw=pa.string(),
    ),
)

# One row per human turn. turn: number among the record's human turns, from 0. message_key: as in text_messages/1.
TEXT_TURNS = Schema(
    "text_turns/1",
    _columns(unique_id=pa.int64(), record_key=pa.string(), turn=pa.int32(), message_key=pa.string()),
)

# text_similarity: mean over the record's turns of 1 - d / max(d), in [0, 1]. cluster: of the record's first turn.
TEXT_SCORES = Schema(
    "text_scores/2",
    _columns(
        unique_id=pa.int64(),
        record_key=pa.string(),
        num_turns=pa.int32(),
        text_similarity=pa.float64(),
        cluster=pa.int32(),
    ),
)


def kmeans_schema(dimensions: int) -> Schema:
    """`kmeans/1`: one row per cluster.

    `num_turns` is the cluster's size in turns, `typical_message` the message nearest to its centroid ("" if none is).
    """
    return Schema(
        "kmeans/1",
        _columns(
            cluster=pa.int32(),
            num_turns=pa.int64(),
            typical_message=pa.string(),
            centroid=pa.list_(pa.float32(), dimensions),
        ),
    )


# iou: null if a map is missing. text_similarity: null if cluster_scoring has none. image_score = 1 - minmax(iou),
# text_score = 1 - minmax(text_similarity) and combined: null outside the pool that is drawn from. id, image, position:
# as in records/2. question: at most 200 characters of it. num_turns and cluster: as in text_scores/2, null without one.
SCORES = Schema(
    "scores/2",
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
        id_=pa.string(),
        image_=pa.string(),
        position=pa.int64(),
        question_=pa.string(),
        num_turns_=pa.int32(),
        cluster_=pa.int32(),
    ),
)

# A benchmark's questions, where they are Parquet. id: its own. image: path below the folder's pictures, null for none.
# question: all that the model is told. answers: accepted ones; ten for VQA. options: texts of A, B, and so on.
# category: what the metric counts apart, "" for none. group: of questions that count together (the pairs of MME, the
# rotations of MMBench), "" for none.
BENCHMARK = Schema(
    "benchmark/1",
    _columns(
        id=pa.string(),
        image_=pa.string(),
        question=pa.string(),
        answers=pa.list_(pa.string()),
        options=pa.list_(pa.string()),
        category=pa.string(),
        group=pa.string(),
    ),
)

# One row per question of every benchmark, in their order. metric: how it was judged. question_id to answers: of
# benchmark/1. text: what the model said. num_tokens: with EOS. outcome: "ok", or why there is no answer (see
# free2ds_common.outcomes). judged: what the metric read out of the text; score: in [0, 1]; null without an answer.
EVALUATION = Schema(
    "evaluation/1",
    _columns(
        benchmark=pa.string(),
        metric=pa.string(),
        question_id=pa.string(),
        image_=pa.string(),
        category=pa.string(),
        group=pa.string(),
        question=pa.string(),
        answers=pa.list_(pa.string()),
        text=pa.string(),
        num_tokens_=pa.int32(),
        outcome=pa.string(),
        judged_=pa.string(),
        score_=pa.float64(),
    ),
)

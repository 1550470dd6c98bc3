"""Writes what later stages and people read: the scores, the two selections, the summary."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.inputs import Inputs
from components.joint_selection.selection import Candidates, Selection
from components.joint_selection.summary import Summary
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset, sha256_of_file
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.redact import redacted_values
from free2ds_common.run_facts import image
from free2ds_common.schemas import SCORES, kmeans_schema
from free2ds_common.storage import atomic_writer

# What every record of a selection is numbered by.
UNIQUE_ID = "unique_id"
_WRITE_ROWS = 50_000
# Characters of a question in scores/2.
_QUESTION_LENGTH = 200


def write_scores(folder: str, inputs: Inputs, candidates: Candidates, selection: Selection, summary: Summary) -> None:
    """Write scores/2, a row per record in input order.

    Args:
        folder: Where to.
        inputs: Ids and outcomes.
        candidates: The signals of each record.
        selection: Its scores.
        summary: For the manifest.
    """
    with DatasetWriter(folder, SCORES) as writer:
        start = 0
        # These columns are as large as the pictures' names and all questions: never held in full.
        for batch in inputs.dataset.batches(["id", "image", "position", "question"], _WRITE_ROWS):
            rows = slice(start, start + len(batch))
            columns = [*_score_columns(inputs, candidates, selection, rows), *_told_by_record(inputs, batch, rows)]
            writer.write(pa.table(columns, names=SCORES.arrow.names))
            start = rows.stop
        content = summary.as_json()
        # Nothing that another run with the same result would not say too.
        writer.manifest.update({name: content[name] for name in ("parameters", "models", "counts")})
        if frozen := inputs.text.manifest.get("normalization"):
            writer.manifest["normalization"] = frozen
        writer.manifest.update({name: content["ingest"][name] for name in ("dataset_uri", "dataset_sha256")})


def _score_columns(inputs: Inputs, candidates: Candidates, selection: Selection, rows: slice) -> Iterator[pa.Array]:
    """The columns of scores/2 up to `selected`, in order."""
    words = pa.array(outcomes.ALL)
    yield pa.array(inputs.records.unique_id[rows])
    yield inputs.records.record_key[rows]
    yield candidates.source[rows].cast(pa.string())
    for values in (candidates.iou, selection.image_score, candidates.text_similarity, selection.text_score):
        yield pa.array(values[rows], from_pandas=True)
    yield pa.array(selection.combined[rows], from_pandas=True)
    yield pa.array(selection.probability[rows])
    for side in inputs.sides:
        yield pa.DictionaryArray.from_arrays(pa.array(side.outcome[rows]), words).cast(pa.string())
    yield pa.array(selection.selected[rows])


def _told_by_record(inputs: Inputs, batch: pa.RecordBatch, rows: slice) -> Iterator[pa.Array]:
    """The columns of scores/2 after `selected`: what a record is known by elsewhere."""
    identity, image, position, question = batch.columns
    yield from (identity, image, position, _shortened(question))
    unscored = np.isnan(inputs.text.similarity[rows])
    for values in (inputs.text.num_turns, inputs.text.cluster):
        yield pa.array(values[rows], mask=unscored)


def _shortened(texts: pa.StringArray) -> pa.StringArray:
    """Texts of at most `_QUESTION_LENGTH` characters; an ellipsis ends those that were longer."""
    short = pc.binary_join_element_wise(pc.utf8_slice_codeunits(texts, 0, _QUESTION_LENGTH - 1), "…", "")
    return pc.if_else(pc.greater(pc.utf8_length(texts), _QUESTION_LENGTH), short, texts)


def write_baseline(folder: str, inputs: Inputs, selection: Selection) -> None:
    """Write kmeans/1 with the ranges of the scores: what a later run takes as kmeans_uri to leave old scores alone.

    Args:
        folder: Where to.
        inputs: Has the clusters.
        selection: Has the ranges.
    """
    assert inputs.kmeans is not None
    table = inputs.kmeans.table()
    with DatasetWriter(folder, kmeans_schema(table.schema.field("centroid").type.list_size)) as writer:
        writer.write(table)
        kept = {
            name: value for name, value in inputs.kmeans.manifest.items() if name not in ("schema", "rows", "parts")
        }
        writer.manifest.update(kept, normalization=selection.normalization)


def write_records(path: str, dataset: Dataset, wanted: np.ndarray) -> None:
    """Write the wanted records in input order, untouched but for unique_id; the data set is read again as a stream.

    A record's own unique_id that is another stays, as original_unique_id.

    Args:
        path: JSON list to write.
        dataset: records/2.
        wanted: bool, (N,).
    """
    row, first = 0, True
    with atomic_writer(path, "w") as handle:
        handle.write("[")
        for batch in dataset.batches(["unique_id", "raw"]):
            inside = np.flatnonzero(wanted[row : row + len(batch)])
            for place in inside.tolist():
                record = json.loads(batch.column(1)[place].as_py())
                number = batch.column(0)[place].as_py()
                if record.setdefault(UNIQUE_ID, number) != number:
                    record[_unused_name(record)] = record[UNIQUE_ID]
                record[UNIQUE_ID] = number
                # ASCII: half of a surrogate pair stays what it was in the input.
                handle.write(("\n" if first else ",\n") + json.dumps(record, allow_nan=False))
                first = False
            row += len(batch)
        handle.write("\n]\n")


def _unused_name(record: Mapping[str, object]) -> str:
    """Where a record's own unique_id goes: nothing is lost, however often a record went through a selection."""
    name = f"original_{UNIQUE_ID}"
    while name in record:
        name = f"original_{name}"
    return name


def write_summary(config: JointSelectionConfig, summary: Summary, origins: Mapping[str, Any]) -> None:
    """Write summary.json, and in it what the selection was made from and the checksums of what was written before.

    Args:
        config: Where things are.
        summary: What it says.
        origins: As of `origins_of`.
    """
    content = {**summary.as_json(), "lineage": _lineage(config, origins)}
    with atomic_writer(config.summary, "w") as handle:
        json.dump(redacted_values(content), handle, indent=1)


def origins_of(config: JointSelectionConfig) -> dict[str, Any]:
    """What the selection is made from, by port."""
    return made_from(
        records=config.records,
        llava_attention=config.llava_attention,
        mgm_attention=config.mgm_attention,
        text_scores=config.text_scores,
    )


def _lineage(config: JointSelectionConfig, origins: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image": image(),
        "outputs": {
            "selected": sha256_of_file(config.selected),
            "random": sha256_of_file(config.random),
            "scores": open_dataset(config.scores, SCORES).sha256,
        },
        MADE_FROM: origins,
    }

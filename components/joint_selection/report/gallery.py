"""Records to look at: the picture with both models' maps laid over it."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from components.joint_selection.inputs import Inputs
from components.joint_selection.report.wording import MODEL_NAMES, shortened, shortened_in_the_middle
from components.joint_selection.selection import Candidates, Selection
from free2ds_common.datasets import Dataset
from free2ds_common.pictures import PictureProblem, load_picture

logger = logging.getLogger(__name__)

PLACEHOLDER = "<image>"
_SIDE = 224
_CARDS = 6
_QUESTION_LENGTH, _SOURCE_LENGTH = 400, 60
# How a model's picture processor makes a square of a picture: cut it, add to it, or squeeze it.
CROP, PAD, SQUEEZE = "crop", "pad", "squeeze"


@dataclass(frozen=True)
class Layer:
    """One model's map to lay over a picture.

    Attributes:
        caption: Of the picture.
        framing: CROP, PAD or SQUEEZE.
        values: float32, (grid, grid); None without a map.
    """

    caption: str
    framing: str
    values: np.ndarray | None


@dataclass(frozen=True)
class Card:
    """One record of a gallery.

    Attributes:
        unique_id: The record.
        question: What was asked, cut.
        source: The record's.
        numbers: Label and value of each score.
        pictures: Caption and data URI: the picture, and each model's map over it; empty without a picture.
        remark: Why there is no picture, or empty.
        selected: Whether it was drawn.
    """

    unique_id: int
    question: str
    source: str
    numbers: list[tuple[str, str]]
    pictures: list[tuple[str, str]]
    remark: str
    selected: bool


@dataclass(frozen=True)
class Gallery:
    """Records of one kind.

    Attributes:
        title: Their kind.
        text: What it means.
        cards: The records.
    """

    title: str
    text: str
    cards: list[Card]


@dataclass(frozen=True)
class _Pick:
    """Which records a gallery shows: title, explanation, and int64 row numbers in the order to show them."""

    title: str
    text: str
    rows: np.ndarray


def galleries(image_root_uri: str, inputs: Inputs, candidates: Candidates, selection: Selection) -> list[Gallery]:
    """All galleries that have a record to show.

    Args:
        image_root_uri: The image root.
        inputs: Records and maps.
        candidates: IoU of each record.
        selection: Its scores.
    """
    picks = [pick for pick in _picks(candidates, selection) if len(pick.rows)]
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(pick.rows for pick in picks)]))
    ids = inputs.records.unique_id[rows]
    found = inputs.dataset.take(rows.tolist(), ["image", "question", "messages", "source"]).to_pylist()
    maps = [
        (f"{MODEL_NAMES[side.name]} looks here", framing_of(side.parts[0]), maps_of(side.parts, side.part[rows], ids))
        for side in inputs.sides
    ]
    root = PictureRoot(image_root_uri)
    made = {}
    for row, unique_id, record in zip(rows.tolist(), ids.tolist(), found, strict=True):
        numbers = [
            ("combined", f"{selection.combined[row]:.3f}"),
            ("IoU", f"{candidates.iou[row]:.3f}"),
            ("text score", f"{selection.text_score[row]:.3f}"),
        ]
        layers = [Layer(caption, framing, values.get(unique_id)) for caption, framing, values in maps]
        made[row] = card(root, unique_id, record, layers, numbers, bool(selection.selected[row]))
    return [Gallery(pick.title, pick.text, [made[row] for row in pick.rows.tolist()]) for pick in picks]


def _picks(candidates: Candidates, selection: Selection) -> list[_Pick]:
    """The records worth a look, among those with an IoU."""
    with_iou = np.flatnonzero(selection.in_pool & ~np.isnan(candidates.iou))
    order = with_iou[np.argsort(-selection.combined[with_iou], kind="stable")]
    chosen = order[selection.selected[order]]
    margin = np.abs(selection.combined - selection.edge)[order]
    near = np.sort(np.argsort(margin, kind="stable")[:_CARDS])
    return [
        _Pick(
            "Highest combined score",
            "With an IoU: the models look at different places, or the text is unusual.",
            order[:_CARDS],
        ),
        _Pick(
            "Lowest combined score",
            "With an IoU: the models look at the same place and the text is typical.",
            order[::-1][:_CARDS],
        ),
        _Pick(
            "Near the line",
            "Nearest to the score at which the deterministic sampler (top) would stop.",
            order[near],
        ),
        _Pick(
            "From the middle of the selection",
            "What an average selected record looks like.",
            chosen[max(0, len(chosen) // 2 - _CARDS // 2) :][:_CARDS],
        ),
    ]


def framing_of(part: Dataset) -> str:
    """How the model of attention/1 saw its pictures, by the settings of its picture processor."""
    settings = part.manifest.get("preprocessing", {})
    if settings.get("do_center_crop", True):
        return CROP
    return PAD if settings.get("do_pad") else SQUEEZE


def maps_of(parts: Sequence[Dataset], part: np.ndarray, unique_ids: np.ndarray) -> dict[int, np.ndarray]:
    """The maps of a few records by unique_id, (grid, grid) each; records without one are left out.

    Args:
        parts: attention/1 of one model.
        part: int32, (n,), which of them has each record's row; -1 for none.
        unique_ids: int64, (n,).
    """
    found: dict[int, np.ndarray] = {}
    for number in np.unique(part[part >= 0]):
        rows = np.flatnonzero(
            np.isin(parts[number].table(["unique_id"]).column(0).to_numpy(), unique_ids[part == number])
        )
        table = parts[number].take(rows.tolist(), ["unique_id", "map"])
        for unique_id, values in zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True):
            if values is not None:
                side = int(len(values) ** 0.5)
                found[unique_id] = np.asarray(values, np.float32).reshape(side, side)
    return found


def pictures_of(image_root_uri: str, image: str, layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """The picture as the first model saw it, and as each one saw it under its map: caption and data URI.

    Args:
        image_root_uri: The image root.
        image: The record's.
        layers: At least one; those without a map are left out.

    Raises:
        PictureProblem: The picture cannot be used.
    """
    picture = load_picture(image_root_uri, image)
    under_maps = [
        (layer.caption, _data_uri(overlay(framed(picture, layer.framing), layer.values)))
        for layer in layers
        if layer.values is not None
    ]
    return [("picture", _data_uri(framed(picture, layers[0].framing))), *under_maps]


def framed(picture: Image.Image, framing: str) -> Image.Image:
    """A square of a picture, as CROP, PAD or SQUEEZE says."""
    if framing == SQUEEZE:
        return picture.resize((_SIDE, _SIDE))
    square = ImageOps.fit if framing == CROP else ImageOps.pad
    return square(picture, (_SIDE, _SIDE))


def overlay(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """The picture in gray with the map in colour: dark red is little, bright yellow is much.

    Args:
        picture: RGB.
        values: float32, (grid, grid), non-negative.
    """
    # The 99th percentile is full brightness: one outlier must not blacken the rest.
    strength = np.clip(values / max(float(np.percentile(values, 99)), 1e-12), 0, 1)
    mask = Image.fromarray((strength * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    level = np.asarray(mask, np.float32)[..., None] / 255
    gray = np.asarray(picture.convert("L"), np.float32)[..., None]
    heat = np.concatenate([200 + 55 * level, 230 * level, 40 * level], axis=2)
    return Image.fromarray((gray * (1 - 0.75 * level) + heat * 0.75 * level).clip(0, 255).astype(np.uint8))


def _data_uri(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()


class PictureRoot:
    """Where the pictures are, until it does not answer: a dead store is asked once, not for every card."""

    def __init__(self, uri: str) -> None:
        """Name the root."""
        self._uri, self._answers = uri, True

    def show(self, image: str, layers: Sequence[Layer]) -> tuple[list[tuple[str, str]], str]:
        """`pictures_of`, or nothing and a remark that says why."""
        if self._answers:
            try:
                return pictures_of(self._uri, image, layers), ""
            except PictureProblem as problem:
                return [], f"picture not shown: {problem.reason}"
            # A picture in the report is worth no failed selection, whatever a store raises.
            except Exception as error:
                logger.warning("gallery: %s: %s: %s", image, type(error).__name__, error)
                self._answers = False
        return [], "picture not shown: the store did not answer"


def card(
    root: PictureRoot,
    unique_id: int,
    row: Mapping[str, Any],
    layers: Sequence[Layer],
    numbers: list[tuple[str, str]],
    selected: bool,
) -> Card:
    """Put a card together of a row of records/2; a picture that cannot be shown becomes a remark."""
    question = (row["question"] or next(iter(row["messages"]), "")).replace(PLACEHOLDER, "").strip()
    shown, remark = root.show(row["image"], layers) if row["image"] else ([], "no picture (text only)")
    short, source = shortened(question, _QUESTION_LENGTH), shortened_in_the_middle(row["source"], _SOURCE_LENGTH)
    return Card(unique_id, short, source, numbers, shown, remark, selected)

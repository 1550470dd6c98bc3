"""Every parameter changes what it should change, and nothing else; wrong ones are refused."""

import dataclasses

import pytest

from components.joint_selection.config import DrawSettings, JointSelectionSettings
from components.joint_selection.stage import run
from free2ds_common.errors import StageError
from tests.support.selection import Inputs, chosen_ids, ids_after, rows_of

pytestmark = pytest.mark.usefixtures("without_report")
# Another value, and the columns of scores/2 that it changes; all others stay as they are.
EFFECTS = {
    "seed": (7, {"selected"}),
    "ratio": (0.5, {"selected"}),
    "num_samples": (7, {"selected"}),
    "stratify": ("source", {"probability", "selected"}),
    "alpha": (0.9, {"combined", "probability", "selected"}),
    "temperature": (0.05, {"probability", "selected"}),
    "sampler": ("top", {"selected"}),
    "missing_iou": ("reference", {"image_score", "combined", "probability", "selected"}),
    "text_normalization": ("rank", {"text_score", "combined", "probability", "selected"}),
    "top_percent": (10.0, {"iou", "image_score", "combined", "probability", "selected"}),
    "max_reject_fraction": (1.0, set()),
    "image_root_uri": ("elsewhere", set()),
    # Of the run with the settings of before.
    "previous_selected_uri": ("selected.json", set()),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The records of high scores are of one source, so that strata draw others than one draw does."""
    inputs = Inputs(tmp_path_factory.mktemp("inputs"))
    inputs.sources = ["x" if similarity < 0.3 else "y" for similarity in inputs.similarity]
    return inputs.write()


def columns_of(config):
    run(config)
    rows = rows_of(config)
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_every_parameter_is_here():
    assert EFFECTS.keys() == {field.name for field in dataclasses.fields(JointSelectionSettings)}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_parameter_changes_its_columns(written, name):
    value, changed = EFFECTS[name]
    # A temperature at which the scores decide much, so that a change of the scores changes the selection.
    base = columns_of(written.config(temperature=0.1))
    value = str(written.folder / value) if name == "previous_selected_uri" else value
    other = columns_of(written.config(**{"temperature": 0.1, name: value}))
    assert {column for column in base if base[column] != other[column]} == changed


@pytest.mark.parametrize("sampler", ["gumbel", "reference"])
def test_seeds_change_the_draw(written, sampler):
    seeds = (0, 1, 42, 2**32 - 1)
    drawn = {tuple(ids_after(written.config(seed=seed, sampler=sampler))) for seed in seeds}
    assert len(drawn) == len(seeds)


@pytest.mark.parametrize("sampler", ["gumbel", "reference", "top"])
def test_seeds_change_the_control(written, sampler):
    seeds = (0, 1, 42, 2**32 - 1)
    drawn = {tuple(ids_after(written.config(seed=seed, sampler=sampler), "random")) for seed in seeds}
    assert len(drawn) == len(seeds)


@pytest.mark.parametrize("sampler", ["gumbel", "reference", "top"])
def test_the_same_seed_is_the_same_draw(written, sampler):
    config = written.config(seed=7, sampler=sampler)
    run(config)
    first = chosen_ids(config), chosen_ids(config, "random")
    run(config)
    assert (chosen_ids(config), chosen_ids(config, "random")) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, r"ratio: got 0, wanted a number in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio: got 1\.5, wanted a number in \(0, 1\]"),
        ({"ratio": float("nan")}, "ratio: got nan"),
        ({"alpha": -0.1}, r"alpha: got -0\.1, wanted a number in \[0, 1\]"),
        ({"alpha": 1.1}, r"alpha: got 1\.1, wanted a number in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature: got 0, wanted a number above 0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_percent": 0}, r"top_percent: got 0, wanted a number in \(0, 100\]"),
        ({"top_percent": 100.5}, r"top_percent: got 100\.5, wanted a number in \(0, 100\]"),
        ({"num_samples": -1}, r"num_samples: got -1, wanted 0 \(use ratio\) or the number to select"),
        ({"seed": -1}, "seed: got -1, wanted an integer from 0 to 4294967295"),
        ({"seed": 2**32}, "seed: got 4294967296, wanted an integer from 0 to 4294967295"),
        ({"sampler": "best"}, "sampler: got 'best', wanted one of gumbel, reference, top"),
        ({"missing_iou": "zero"}, "missing_iou: got 'zero', wanted one of calibrated, exclude, reference, text"),
        ({"text_normalization": "z"}, "text_normalization: got 'z', wanted one of rank, reference"),
        ({"stratify": "image"}, r"stratify: got 'image', wanted one of '' \(empty\), source"),
        ({"max_reject_fraction": 1.1}, r"max_reject_fraction: got 1\.1, wanted a number in \[0, 1\]"),
    ],
)
def test_wrong_settings(written, changes, message):
    with pytest.raises(StageError, match=f"^{message}"):
        run(written.config(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"ratio": 1.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"top_percent": 100.0}, {"seed": 0}, {"seed": 2**32 - 1}],
)
def test_settings_at_their_ends(changes):
    fields = {field.name for field in dataclasses.fields(DrawSettings)}
    (DrawSettings if changes.keys() <= fields else JointSelectionSettings)(**changes).check()

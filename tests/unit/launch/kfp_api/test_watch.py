"""The live view: a line for every change, or lines rewritten in place on a terminal."""

import io
import re

from free2ds_common.launch.kfp_api.steps import Step, StepName
from free2ds_common.launch.kfp_api.watch import View, progress

NAMES = [StepName(key, key) for key in ("ingest", "llava-attention", "joint-selection")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(name, state, turn=""):
    return Step(name=StepName(name, name), iteration=turn, state=state, pods=(), error="", started=None, ended=None)


def shards(*states):
    return [step("llava-attention", state, str(turn)) for turn, state in enumerate(states)]


def test_where_a_run_stands():
    steps = [step("joint-selection", ""), *shards("SUCCEEDED", "RUNNING", "SUCCEEDED"), step("ingest", "SUCCEEDED")]
    assert progress(NAMES, steps) == {
        "ingest": "succeeded",
        "llava-attention": "1 running, 2 succeeded of 3",
        "joint-selection": "pending",
    }


def test_elsewhere_every_change_is_a_line():
    stream = io.StringIO()
    view = View(NAMES, stream)
    view.show([step("ingest", "RUNNING")])
    view.show([step("ingest", "RUNNING")], ["ingest: ErrImagePull"])
    view.show([step("ingest", "SUCCEEDED"), *shards("RUNNING", "RUNNING")], ["ingest: ErrImagePull"])
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stream.getvalue().splitlines()] == [
        "ingest: running",
        "ingest: ErrImagePull",
        "ingest: succeeded",
        "llava-attention: 2 running of 2",
    ]


def test_on_a_terminal_lines_are_rewritten():
    stream = Terminal()
    view = View(NAMES, stream)
    view.show([step("ingest", "RUNNING")])
    view.show([step("ingest", "SUCCEEDED"), step("joint-selection", "RUNNING")], ["a note"])
    assert stream.getvalue() == (
        "  ingest  running\x1b[K\n"
        "\x1b[1A"
        "a note\x1b[K\n"
        "  ingest           succeeded\x1b[K\n"
        "  joint-selection  running\x1b[K\n"
    )

"""The README's parameter table is the pipeline's."""

import json
from pathlib import Path

import pipeline

README = Path(__file__).resolve().parents[2] / "README.md"


def test_nothing_was_left_to_fill_in():
    for path in README.parent.glob("**/README.md"):
        if ".venv" not in path.parts:
            assert "@@" not in path.read_text(encoding="utf-8"), path


def test_every_parameter_with_its_default_and_meaning_is_in_the_table():
    wanted = []
    for name, value in pipeline.free2ds.component_spec.inputs.items():
        text = value.default if isinstance(value.default, str) else json.dumps(value.default)
        default = "required" if not value.optional else f"`{text}`" if text else "empty"
        wanted.append(f"| `{name}` | {default} | {value.description} |")
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index("| parameter | default | meaning |") + 2
    assert lines[start : start + len(wanted) + 1] == [*wanted, ""]

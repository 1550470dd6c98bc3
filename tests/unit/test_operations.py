"""docs/operations.md, "When things go wrong": what it says that a run says is what the code says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CHAPTER = (
    (REPOSITORY / "docs/operations.md")
    .read_text(encoding="utf-8")
    .partition("\n## When things go wrong\n")[2]
    .partition("\n## ")[0]
)
TABLE = CHAPTER.partition("\n### By what the run says\n")[2].partition("\n\n")[0]
QUOTED = re.findall(r"^\|[^|]*\| `([^`]+)` \|", TABLE, re.MULTILINE)
GAP = "\0"


@cache
def sentences():
    """Every text of the code, a gap where it is filled in."""
    found = []
    for folder in ("components", "free2ds_common"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    # What logging fills in.
                    found.append(re.sub(r"%(\.\d)?[sdf]", GAP, node.value))
    return found


def is_said(quote):
    """Whether a text of the code is the quote, with something for each "..."; a name may come before it."""
    wanted = ".*".join(re.escape(part) for part in quote.removeprefix("...: ").split("..."))
    return any(re.search(wanted, text, re.DOTALL) for text in sentences())


def test_the_table_is_found():
    assert len(QUOTED) == len(re.findall(r"^\| ", TABLE, re.MULTILINE)) - 2
    assert len(QUOTED) > 20


@pytest.mark.parametrize("quote", QUOTED)
def test_a_quoted_sentence_is_in_the_code(quote):
    assert is_said(quote)


def test_another_sentence_is_not():
    assert not is_said("...: could not be found in ... tries")
    assert is_said("...: could not be read in ... tries")


@pytest.mark.parametrize(
    "symptom", ["stores", "damaged files", "results store", "disk", "memory", "GPU", "stopped", "two runs", "records"]
)
def test_every_kind_of_trouble_has_a_row(symptom):
    assert re.search(rf"^\| {symptom} \|", TABLE, re.MULTILINE)

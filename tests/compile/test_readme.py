"""The documentation is the pipeline's."""

from pathlib import Path

import pipeline
from free2ds_common.launch.cli import parameter_table
from free2ds_common.launch.package import Package

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_parameters_is_what_the_pipeline_has():
    page = (REPOSITORY / "docs/parameters.md").read_text(encoding="utf-8")
    assert page.endswith(f"\n\n{parameter_table(Package.compile(pipeline.free2ds))}\n"), "run: make docs"

"""The documentation is the pipeline's."""

from pathlib import Path

import pipeline
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameter_page import parameter_page

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_parameters_is_what_the_pipeline_has():
    page = (REPOSITORY / "docs/parameters.md").read_text(encoding="utf-8")
    assert page.endswith(f"\n\n{parameter_page(Package.compile(pipeline.free2ds))}\n"), "run: make docs"

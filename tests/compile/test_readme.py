"""The documentation is the pipeline's."""

from pathlib import Path

import yaml

import pipeline
from free2ds_common.launch.form_picture import form_digest, shown_digest
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameter_page import parameter_page

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_compiled_file_is_the_one_that_was_looked_at():
    """A change of the graph shows as a change of the file that a backend gets."""

    def read(documents):
        spec, platform = yaml.safe_load_all(documents)
        # Another patch release of kfp writes the same.
        return {**spec, "sdkVersion": ""}, platform

    written = (REPOSITORY / "tests/compile/free2ds.yaml").read_text(encoding="utf-8")
    package = Package.compile(pipeline.free2ds).with_images(lambda image: image)
    now = yaml.safe_dump_all([dict(package.spec), dict(package.platform)])
    assert read(written) == read(now), "run: make docs"


def test_the_page_of_parameters_is_what_the_pipeline_has():
    page = (REPOSITORY / "docs/parameters.md").read_text(encoding="utf-8")
    assert page.endswith(f"\n\n{parameter_page(Package.compile(pipeline.free2ds))}\n"), "run: make docs"


def test_the_picture_of_the_form_has_the_parameters_of_the_pipeline():
    assert shown_digest(REPOSITORY / "docs/run-form.png") == form_digest(Package.compile(pipeline.free2ds)), (
        "run: make docs"
    )


def test_the_picture_of_the_form_is_in_readme():
    assert "](docs/run-form.png)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")

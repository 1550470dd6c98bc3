"""A compiled pipeline as an object: changed copies leave the original alone, and the walk finds every step."""

import copy
import dataclasses

import pytest
import yaml
from kfp import dsl

import pipeline
from free2ds_common.errors import SettingError
from free2ds_common.launch.package import Package, Parameter, descriptions
from free2ds_common.launch.parameters import check_parameters
from free2ds_common.settings import Settings


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


@pytest.fixture
def untouched(package):
    """Fails a test that changed the package that it was handed."""
    before = copy.deepcopy((package.spec, package.platform))
    yield package
    assert (package.spec, package.platform) == before


def retries(package):
    components = (package.spec["root"], *package.spec["components"].values())
    tasks = [task for component in components for task in component.get("dag", {}).get("tasks", {}).values()]
    return sum("retryPolicy" in task for task in tasks)


def test_images_are_named_otherwise(untouched):
    renamed = untouched.with_images(lambda image: f"registry.example/{image}")
    assert renamed.images == [f"registry.example/{image}" for image in untouched.images]
    assert untouched.images[0] == "free2ds-bert-features:dev"


def test_no_task_is_tried_again(untouched):
    assert retries(untouched) == 10
    assert retries(untouched.without_retries()) == 0


def test_what_is_written_is_two_documents(untouched, tmp_path):
    untouched.write(tmp_path / "free2ds.yaml")
    spec, platform = yaml.safe_load_all((tmp_path / "free2ds.yaml").read_text())
    assert spec == untouched.spec
    assert platform == untouched.platform


def test_every_step_is_found_in_whatever_graph_it_is(package):
    assert sorted(task.stage for task in package.stage_tasks) == [
        "bert_features",
        "cluster_scoring",
        "demand",
        "ingest",
        "joint_selection",
        "llava_attention",
        "mgm_attention",
        "resolve",
        "reuse",
        "split",
        "split",
    ]


def test_parameters_have_their_types_and_the_order_of_the_signature(package):
    parameters = package.parameters
    assert list(parameters)[:3] == ["dataset_uri", "image_root_uri", "max_reject_fraction"]
    assert list(parameters)[-1] == "store_config_map"
    assert parameters["dataset_uri"].required
    assert parameters["dataset_uri"].default is None
    assert parameters["num_clusters"] == Parameter(
        kind=int,
        required=False,
        default=1000,
        description="Centroids of the text side's k-means, no more than distinct messages; 0 for a 39th of those, "
        "1000 at most. 0 in a local run unless it is given.",
    )
    assert type(parameters["num_clusters"].default) is int
    assert parameters["gpu_node_selector"].default == {"nvidia.com/gpu.present": "true"}


def test_a_parameter_of_two_stages_is_described_by_both(package):
    assert package.parameters["seed"].description == (
        "Seed of k-means: training points and initial centroids. Seed of the draw and of the random control."
    )
    # The same words in both are said once.
    assert package.parameters["max_reject_fraction"].description == (
        "Largest accepted share of unusable records, in [0, 1]."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    """Outer.

    Attributes:
        one: First, over
            two lines.
        two: Second.
    """

    one: int = 1
    two: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Outer):
    """Inner.

    Attributes:
        two: Second, said otherwise.
    """

    three: int = 3


def test_descriptions_are_inherited_and_can_be_said_anew():
    assert descriptions(Inner) == {"one": "First, over two lines.", "two": "Second, said otherwise."}


@dsl.component(base_image="free2ds-split:dev", install_kfp_package=False)
def split(records: dsl.Input[dsl.Dataset], shards: dsl.Output[dsl.Dataset], num_shards: int) -> None:
    pass


@dsl.pipeline(name="inner")
def inner(uri: str, many: int):
    records = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=False)
    split(records=records.output, num_shards=many)
    split(records=records.output, num_shards=65)


@dsl.pipeline(name="outer")
def fixed(uri: str, how_many: int = 4):
    inner(uri=uri, many=how_many)


def test_a_constant_of_the_graph_is_checked_too():
    """A nested pipeline passes one number on and writes another one down."""
    package = Package.compile(fixed)
    given = [(dict(task.sources), dict(task.constants)) for task in package.stage_tasks]
    assert ({"num_shards": "how_many"}, {}) in given
    assert ({}, {"num_shards": 65}) in given
    with pytest.raises(SettingError, match="num_shards: got 65, wanted 1 to 64"):
        check_parameters(package, {"uri": "u"})


def test_a_refused_setting_is_named_as_the_run_parameter():
    package = Package.compile(fixed)
    with pytest.raises(SettingError, match="how_many: got -1, wanted 1 to 64, or 0"):
        check_parameters(package, {"uri": "u", "how_many": -1})

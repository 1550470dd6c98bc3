"""The run configurations are the compiled pipeline's: names, types, and what every stage accepts."""

import re
import shlex
from pathlib import Path

import pytest

import pipeline
from components.evaluate.config import ConvertConfig
from components.evaluate.official import OFFICIAL_FORMATS
from components.finetune.start import StartConfig
from free2ds_common.cli import parse
from free2ds_common.errors import StageError
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import read_parameters, refuse_local_paths

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CONFIGS = [*sorted((EXAMPLES / "configs").glob("*.yaml")), EXAMPLES / "llava_665k/select.yaml"]


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


def test_they_are_all_there():
    assert [path.stem for path in CONFIGS] == ["llava-665k-gke", "llava-665k-s3", "no-gpu", "on-prem", "select"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_pipeline_takes_it_for_a_cluster(path, package):
    values = read_parameters(package, str(path), [])
    refuse_local_paths(values)
    assert {name for name, parameter in package.parameters.items() if parameter.required} <= values.keys()


def test_the_example_has_the_published_setting(package):
    values = package.with_defaults(read_parameters(package, str(CONFIGS[-1]), []))
    # The temperature at its default: 1.
    published = {"ratio": 0.2, "select_options": "", "alpha": 0.5, "num_clusters": 1000, "num_samples": 0}
    assert {name: values[name] for name in published} == published


def test_the_loop_takes_its_example():
    path, loop = EXAMPLES / "llava_665k/loop.yaml", Package.compile(pipeline.free2ds_loop)
    values = read_parameters(loop, str(path), [])
    refuse_local_paths(values)
    select = read_parameters(Package.compile(pipeline.free2ds), str(CONFIGS[-1]), [])
    assert {name: values[name] for name in select} == select
    assert {name for name, parameter in loop.parameters.items() if parameter.required} <= values.keys()


class TestGuide:
    """The example of LLaVA-665K, line by line; its free2ds commands are tested as of every page (test_docs.py)."""

    @pytest.fixture
    def lines(self):
        page = (EXAMPLES / "llava_665k/README.md").read_text(encoding="utf-8")
        return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", page, re.MULTILINE)]

    @pytest.fixture
    def values(self):
        return read_parameters(Package.compile(pipeline.free2ds_loop), str(EXAMPLES / "llava_665k/loop.yaml"), [])

    def test_makes_the_benchmarks_that_are_asked(self, lines, values):
        called = ["python", "-m", "components.evaluate", "convert"]
        configs = [parse(ConvertConfig, line[4:], "convert") for line in lines if line[:4] == called]
        for config in configs:
            config.check()
            official = OFFICIAL_FORMATS[config.benchmark]
            assert official.fewest <= len(config.files) <= official.most, config.benchmark
            assert config.output == f"benchmarks/{config.benchmark}"
        copied = [line for line in lines if line[:3] == ["gcloud", "storage", "cp"]]
        assert ["benchmarks", "gs://BUCKET/"] in [line[4:] for line in copied]
        asked = values["benchmark_uris"].split(",")
        assert [f"gs://BUCKET/{config.output}" for config in configs] == asked

    def test_makes_the_model_to_start_from(self, lines, values):
        (config,) = [
            parse(StartConfig, line[3:], "start") for line in lines if line[2:3] == ["components.finetune.start"]
        ]
        assert ["gcloud", "storage", "cp", "-r", config.model, "gs://BUCKET/models/"] in lines
        assert values["train_model"] == f"gs://BUCKET/models/{config.model}"


def test_without_gpus_no_step_asks_for_one(package):
    (path,) = [path for path in CONFIGS if path.stem == "no-gpu"]
    values = read_parameters(package, str(path), [])
    asked = {
        name: value
        for name, value in values.items()
        if name.startswith("gpu_") or "node_sel" in name or "toler" in name
    }
    assert set(map(str, asked.values())) == {"0", "{}", "[]"}


def test_a_name_that_the_pipeline_does_not_have_is_refused(package, tmp_path):
    (tmp_path / "config.yaml").write_text("dataset_uri: gs://b/d\nimage_root_uri: gs://b/i\nnum_shard: 3\n")
    with pytest.raises(StageError, match=r"num_shard: there is no parameter of this name\. Did you mean num_shards\?"):
        read_parameters(package, str(tmp_path / "config.yaml"), [])

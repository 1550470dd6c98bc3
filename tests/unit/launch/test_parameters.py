"""Run parameters: their types, their files, and that a wrong one is refused before anything runs."""

import json

import pytest
import yaml

import pipeline
from free2ds_common.errors import SettingError
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import read_parameters, refuse_local_paths, with_absolute_paths

REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


def test_parameters_get_their_types(package):
    given = {
        "ratio": ("1", 1.0),
        "num_shards": ("3", 3),
        "llava_model": ("12", "12"),
        "bert_model": ("a=b", "a=b"),
        "gpu_node_selector": ('{"a": "b"}', {"a": "b"}),
        "gpu_tolerations": ("[]", []),
    }
    assignments = [*REQUIRED[1::2], *(f"{name}={text}" for name, (text, _) in given.items())]
    assert read_parameters(package, "", assignments) == {
        "dataset_uri": "gs://b/d.json",
        "image_root_uri": "gs://b/i",
        **{name: value for name, (_, value) in given.items()},
    }


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_parameter_file_yields_to_the_command_line(package, write, tmp_path):
    path = tmp_path / "parameters"
    path.write_text(write({"dataset_uri": "d", "image_root_uri": "", "ratio": 1, "seed": 5}))
    assert read_parameters(package, str(path), ["seed=6"]) == {
        "dataset_uri": "d",
        "image_root_uri": "",
        "ratio": 1.0,
        "seed": 6,
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["sampler=top"], {"select_options": "sampler=top"}),
        (["top_percent=20", "sampler=top"], {"select_options": "sampler=top top_percent=20"}),
        # The name by itself wins over the text.
        (
            ["sampler=top", "select_options=sampler=gumbel stratify=source"],
            {"select_options": "sampler=top stratify=source"},
        ),
        (["llava_vision_tower=a b"], {"llava_options": "'vision_tower=a b'"}),
        (["max_new_tokens=7"], {"llava_options": "max_new_tokens=7", "mgm_options": "max_new_tokens=7"}),
        (["attention_batch_size=2"], {"llava_options": "batch_size=2", "mgm_options": "batch_size=2"}),
        (
            ["dtype=float32", "order=reference"],
            {
                "llava_options": "dtype=float32",
                "mgm_options": "dtype=float32",
                "text_options": "dtype=float32 order=reference",
            },
        ),
    ],
)
def test_options_may_be_given_by_themselves(package, given, wanted):
    found = read_parameters(package, "", [*REQUIRED[1::2], *given])
    assert found == {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i", **wanted}


def test_options_of_a_file_have_types_of_their_own(package, tmp_path):
    (tmp_path / "p.yaml").write_text("dataset_uri: d\nimage_root_uri: ''\ntop_percent: 20\nmax_new_tokens: 7\n")
    found = read_parameters(package, str(tmp_path / "p.yaml"), [])
    assert found["select_options"] == "top_percent=20"
    assert found["mgm_options"] == "max_new_tokens=7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "dataset_uri: is missing. Add --param dataset_uri=... (LLaVA JSON"),
        (REQUIRED[:2], "image_root_uri: is missing. Add --param image_root_uri=... (The folder"),
        ([*REQUIRED, "--param", "ratoi=1"], "ratoi: there is no parameter of this name. Did you mean ratio?"),
        (
            [*REQUIRED, "--param", "zzz=1"],
            "zzz: there is no parameter of this name. free2ds run --help list",
        ),
        ([*REQUIRED, "--param", "samplr=top"], "samplr: there is no parameter of this name. Did you mean sampler?"),
        ([*REQUIRED, "--param", "text_options=x"], "text_options: got 'x', wanted name=value, separated by blanks."),
        (
            [*REQUIRED, "--param", "text_options=sampler=top"],
            "text_options: got 'sampler', wanted one of batch_tokens, dtype, num_iterations, order, revision.",
        ),
        ([*REQUIRED, "--param", "text_options=order=key order=key"], "text_options: has order twice."),
        (
            [*REQUIRED, "--param", "text_options=order='"],
            'text_options: got "order=\'", with a quote that does not end.',
        ),
        (
            [*REQUIRED, "--param", "text_options=num_iterations=many"],
            "text_options: num_iterations: got 'many', wanted a whole number.",
        ),
        ([*REQUIRED, "--param", "seed"], "--param: got 'seed', wanted name=value."),
        ([*REQUIRED, "--param", "ratio=half"], "ratio: got 'half', wanted a number."),
        ([*REQUIRED, "--param", "ratio=nan"], "ratio: got nan, wanted a number."),
        ([*REQUIRED, "--param", "seed=1.5"], "seed: got '1.5', wanted a whole number."),
        ([*REQUIRED, "--param", "gpu_node_selector=[]"], "gpu_node_selector: got [], wanted a JSON object."),
        ([*REQUIRED, "--param", "gpu_tolerations=x"], "gpu_tolerations: got 'x', wanted a JSON list."),
        ([*REQUIRED, "--param", "ratio=0"], "ratio: got 0, wanted a number in (0, 1]."),
        ([*REQUIRED, "--param", "alpha=1.5"], "alpha: got 1.5, wanted a number in [0, 1]."),
        ([*REQUIRED, "--param", "temperature=0"], "select_options: temperature: got 0, wanted a number above 0."),
        (
            [*REQUIRED, "--param", "num_samples=-1"],
            "num_samples: got -1, wanted 0 (use ratio) or the number to select.",
        ),
        (
            [*REQUIRED, "--param", "sampler=best"],
            "select_options: sampler: got 'best', wanted one of gumbel, reference, top.",
        ),
        (
            [*REQUIRED, "--param", "missing_iou=zero"],
            "select_options: missing_iou: got 'zero', wanted one of calibrated, exclude, reference, text.",
        ),
        ([*REQUIRED, "--param", "num_shards=65"], "num_shards: got 65, wanted 1 to 64, or 0 (by records_per_shard)."),
        (
            [*REQUIRED, "--param", "max_new_tokens=0"],
            "llava_options: max_new_tokens: got 0, wanted a number of at least 1.",
        ),
        ([*REQUIRED, "--param", "num_clusters=-1"], "num_clusters: got -1, wanted a number of at least 0."),
        (
            [*REQUIRED, "--param", "dtype=int8"],
            "llava_options: dtype: got 'int8', wanted one of auto, bfloat16, float16, float32.",
        ),
        ([*REQUIRED, "--param", "seed=3000000000"], "seed: got 3000000000, wanted an integer from 0 to 2147483647."),
        ([*REQUIRED, "--param", "llava_prompt=chat"], "llava_options: prompt: got 'chat', wanted one of method."),
        ([*REQUIRED, "--param", "mgm_prompt=xyz"], "mgm_options: prompt: got 'xyz', wanted one of method."),
        (
            [*REQUIRED, "--param", "mgm_model_type=auto", "--param", "mgm_prompt=xyz"],
            "mgm_options: prompt: got 'xyz', wanted one of chat, method.",
        ),
        (
            [*REQUIRED, "--param", "llava_model_type=foo"],
            "llava_options: model_type: got 'foo', wanted one of auto, llava.",
        ),
        (
            [*REQUIRED, "--param", "mgm_model_type=llava"],
            "mgm_options: model_type: got 'llava', wanted one of auto, mgm.",
        ),
        (
            [*REQUIRED, "--param", "llava_model="],
            "llava_model: is empty, wanted a folder, an object-store URI or a hub",
        ),
        (
            [*REQUIRED, "--param", "mgm_model="],
            "mgm_model: is empty, wanted a folder, an object-store URI or a hub id.",
        ),
        (
            [*REQUIRED, "--param", "bert_model="],
            "bert_model: is empty, wanted a folder, an object-store URI or a hub id",
        ),
        (
            [*REQUIRED, "--param", "bert_revision="],
            "text_options: revision: is empty, wanted a branch, tag or commit of google",
        ),
        ([*REQUIRED, "--param", "dataset_uri="], "dataset_uri: is empty, wanted the path or URI of a LLaVA JSON or"),
        ([*REQUIRED, "--param", "top_percent=0"], "select_options: top_percent: got 0, wanted a number in (0, 100]."),
        (
            [*REQUIRED, "--param", "num_iterations=0"],
            "text_options: num_iterations: got 0, wanted a number of at least 1.",
        ),
        (
            [*REQUIRED, "--param", "attention_batch_size=-1"],
            "llava_options: batch_size: got -1, wanted a number of at least 0",
        ),
        (
            [*REQUIRED, "--param", "gpu_count=-1"],
            "gpu_count: got '-1', wanted a whole number such as 1, or 0 for none.",
        ),
        (
            [*REQUIRED, "--param", "gpu_count=1.0"],
            "gpu_count: got '1.0', wanted a whole number such as 1, or 0 for non",
        ),
        (
            [*REQUIRED, "--param", "llava_model=/m/{{$.x}}"],
            "llava_model: got '/m/{{$.x}}', which holds {{$, a placehold",
        ),
        ([*REQUIRED, "--param", "gpu_type=gpu"], "gpu_type: got 'gpu', wanted a resource such as nvidia"),
        (
            [*REQUIRED, "--param", 'gpu_node_selector={"a": true}'],
            "gpu_node_selector: a has True, wanted text of at most 63",
        ),
        (
            [*REQUIRED, "--param", 'gpu_node_selector={"a b": "c"}'],
            "gpu_node_selector: 'a b' is no name of a label such as nv",
        ),
        (
            [*REQUIRED, "--param", 'gpu_tolerations=["gpu"]'],
            "gpu_tolerations: 'gpu': wanted an object with key, operator and",
        ),
        ([*REQUIRED, "--param", "max_reject_fraction=2"], "max_reject_fraction: got 2, wanted a number in [0, 1]."),
        (
            [*REQUIRED, "--param", "stratify=image"],
            "select_options: stratify: got 'image', wanted one of '' (empty), source.",
        ),
        (
            [*REQUIRED, "--param", "text_normalization=z"],
            "select_options: text_normalization: got 'z', wanted one of rank, reference.",
        ),
        ([*REQUIRED, "--params-file", "none"], "--config: none cannot be read (No such file or directory)."),
    ],
)
def test_a_wrong_parameter_is_one_sentence_before_anything_runs(options, message, tmp_path, capsys):
    output_dir = tmp_path / "out"
    assert pipeline.main(["run", "--output-dir", str(output_dir), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not output_dir.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1.5", "seed: got 1.5, wanted a whole number."),
        ("seed: true", "seed: got True, wanted a whole number."),
        ("llava_model: 12", "llava_model: got 12, wanted text. Write it in quotes."),
        ("sampler: [top]", "sampler: got ['top'], wanted text or a number."),
        ("llava_prompt:", "llava_prompt: got None, wanted text or a number."),
        ("gpu_count: 1", "gpu_count: got 1, wanted text. Write it in quotes."),
        ("seed:", "seed: got None, wanted a whole number."),
        ("[1]", "holds no names and values. Write it as name: value, one a line."),
        ("{", "is neither JSON nor YAML. Give a file of names and values."),
    ],
)
def test_a_wrong_parameter_file_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "parameters.yaml"
    path.write_text(content)
    assert pipeline.main(["run", "--output-dir", str(tmp_path / "o"), "--params-file", str(path)]) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_only_this_machines_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    values = {
        "dataset_uri": "d.json",
        "image_root_uri": "",
        "llava_model": "models",
        "mgm_model": "owner/name",
        "mgm_options": "prompt=models vision_tower=models vision_tower_aux=gs://b/c",
        "bert_model": "gs://b/m",
        "seed": 1,
    }
    assert with_absolute_paths(values) == {
        **values,
        "dataset_uri": f"{tmp_path}/d.json",
        "llava_model": f"{tmp_path}/models",
        "mgm_options": f"prompt=models vision_tower={tmp_path}/models vision_tower_aux=gs://b/c",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset_uri", "d.json"),
        ("dataset_uri", "/data/d.json"),
        ("image_root_uri", "file:///data/images"),
        ("llava_model", "/models/llava"),
        ("mgm_model", "./mgm"),
        ("bert_model", "~/bert"),
    ],
)
def test_paths_of_this_machine_are_not_for_pods(name, value):
    with pytest.raises(SettingError, match=rf"^{name}: {value} is a path of this machine, which no pod sees"):
        refuse_local_paths({name: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("mgm_options", "vision_tower_aux", "/models/convnext"),
        ("llava_options", "vision_tower", "file:///models/clip"),
    ],
)
def test_paths_in_options_are_not_for_pods(name, option, value):
    with pytest.raises(SettingError, match=rf"^{name}: {option}: {value} is a path of this machine"):
        refuse_local_paths({name: f"batch_size=1 {option}={value}"})


def test_no_benchmark_may_be_a_path_for_pods():
    refuse_local_paths({"benchmark_uris": "gs://b/gqa, s3://b/pope"})
    for path in ("/data/pope", "benchmarks/pope", "file:///data/pope"):
        with pytest.raises(SettingError, match=rf"^benchmark_uris: {path} is a path of this machine"):
            refuse_local_paths({"benchmark_uris": f"gs://b/gqa,{path}"})


def test_a_folder_that_looks_like_a_hub_id_is_not_for_pods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse_local_paths({"bert_model": "owner/name"})
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(SettingError, match="owner/name is a path of this machine"):
        refuse_local_paths({"bert_model": "owner/name"})


def test_every_parameter_is_looked_at():
    values = {"num_shards": 4, "llava_options": "", "gpu_node_selector": {}, "bert_model": "/models/bert"}
    with pytest.raises(SettingError, match=r"^bert_model: /models/bert is a path of this machine"):
        refuse_local_paths(values)


def test_what_pods_can_read_is_accepted():
    refuse_local_paths(
        {
            "dataset_uri": "gs://b/d.json",
            "image_root_uri": "",
            "llava_model": "llava-hf/llava-1.5-7b-hf",
            "mgm_model": "s3://b/mgm",
            "llava_options": "prompt=/any/text",
            "num_shards": 4,
            "gpu_node_selector": {"a": "b"},
        }
    )

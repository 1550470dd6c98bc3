"""compile --kubernetes-manifests: objects of the form that KFP's own compiler writes, around the same pipeline."""

import re

import pytest
import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import pipeline

SPECS = ("pipelineSpec", "platformSpec")


@pytest.fixture
def ours(tmp_path, capsys):
    """What the command writes of a pipeline, and what it says."""

    def compiled(*options):
        path = tmp_path / "ours.yaml"
        assert pipeline.main(["compile", "--output", str(path), *options]) == 0
        assert capsys.readouterr().out.startswith(f"{path}: ")
        return list(yaml.safe_load_all(path.read_text()))

    return compiled


def test_they_have_the_form_of_kfps_own(ours, tmp_path):
    options = KubernetesManifestOptions(pipeline_name="free2ds", namespace="team", include_pipeline_manifest=True)
    compiler.Compiler().compile(
        pipeline.free2ds,
        str(tmp_path / "kfp.yaml"),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    theirs = list(yaml.safe_load_all((tmp_path / "kfp.yaml").read_text()))
    made = ours("--kubernetes-manifests", "--namespace", "team")
    name = made[1]["metadata"]["name"]
    assert re.fullmatch(r"free2ds-[0-9a-f]{12}", name)
    theirs[1]["metadata"]["name"] = theirs[1]["spec"]["displayName"] = name
    for documents in (theirs, made):
        assert set(SPECS) <= set(documents[1]["spec"])
        documents[1]["spec"] = {key: value for key, value in documents[1]["spec"].items() if key not in SPECS}
    assert made == theirs


def test_the_pipeline_in_them_is_the_one_that_is_uploaded_otherwise(ours):
    images = ["--registry", "r.example", "--tag", "1"]
    version = ours("--kubernetes-manifests", *images)[1]["spec"]
    assert [version[name] for name in SPECS] == ours(*images)


def test_without_a_namespace_kubectl_decides(ours):
    assert [set(document["metadata"]) for document in ours("--kubernetes-manifests")] == [{"name"}, {"name"}]


def test_a_namespace_without_objects_is_refused(tmp_path, capsys):
    assert pipeline.main(["compile", "--namespace", "team", "--output", str(tmp_path / "o.yaml")]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --namespace: only the objects of --kubernetes-manifests have one."
    )

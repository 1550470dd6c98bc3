"""compile --kubernetes-manifests: the same objects as KFP's own compiler writes."""

import re

import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import pipeline


def described(content):
    """A spec without descriptions: those of parameters are added here."""
    if isinstance(content, dict):
        return {name: described(value) for name, value in content.items() if name != "description"}
    return [described(value) for value in content] if isinstance(content, list) else content


def test_they_are_what_kfp_writes(tmp_path, capsys):
    options = KubernetesManifestOptions(pipeline_name="free2ds", namespace="team", include_pipeline_manifest=True)
    compiler.Compiler().compile(
        pipeline.free2ds,
        str(tmp_path / "kfp.yaml"),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    arguments = ["--kubernetes-manifests", "--namespace", "team", "--output", str(tmp_path / "ours.yaml")]
    assert pipeline.main(["compile", *arguments]) == 0
    theirs = list(yaml.safe_load_all((tmp_path / "kfp.yaml").read_text()))
    ours = list(yaml.safe_load_all((tmp_path / "ours.yaml").read_text()))
    name = ours[1]["metadata"]["name"]
    assert re.fullmatch(r"free2ds-[0-9a-f]{12}", name)
    theirs[1]["metadata"]["name"] = theirs[1]["spec"]["displayName"] = name
    assert [described(document) for document in ours] == [described(document) for document in theirs]
    assert ours[0]["spec"]["description"] == theirs[0]["spec"]["description"]
    assert capsys.readouterr().out == f"{tmp_path}/ours.yaml: kubectl apply -f {tmp_path}/ours.yaml\n"


def test_without_a_namespace_kubectl_decides(tmp_path):
    pipeline.main(["compile", "--kubernetes-manifests", "--output", str(tmp_path / "o.yaml")])
    documents = list(yaml.safe_load_all((tmp_path / "o.yaml").read_text()))
    assert [set(document["metadata"]) for document in documents] == [{"name"}, {"name"}]


def test_a_namespace_without_objects_is_refused(tmp_path, capsys):
    assert pipeline.main(["compile", "--namespace", "team", "--output", str(tmp_path / "o.yaml")]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --namespace: only the objects of --kubernetes-manifests have one."
    )

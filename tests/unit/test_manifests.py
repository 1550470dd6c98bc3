"""The manifests build, are what Kubernetes takes, are no more open than they must be, and do what their README says."""

import os
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import MANIFESTS, build, findings, kubectl, read

OVERLAYS = ["overlays/gke", "overlays/eks", "overlays/on-prem", "overlays/kind"]
COMPONENTS = ["components/kueue", "components/priority", "components/narrow-runner", "components/trainer"]
OF_BASE = {
    ("ServiceAccount", "pipeline-runner"),
    ("Role", "free2ds-runner"),
    ("RoleBinding", "free2ds-runner"),
    ("ConfigMap", "kfp-launcher"),
    ("ResourceQuota", "free2ds"),
    ("NetworkPolicy", "free2ds-steps"),
    ("PersistentVolumeClaim", "free2ds-models"),
}
# Without a schema in Kubernetes itself: the fields that are used, from Kueue's own.
KUEUE = {
    "ResourceFlavor": set(),
    "ClusterQueue": {"namespaceSelector", "resourceGroups"},
    "LocalQueue": {"clusterQueue"},
}
# What the security check finds, and why it stays.
EXCEPTIONS = {
    ("Role", "workflowtaskresults: names no objects"): "Argo makes up their names; they hold what a container printed",
    ("NetworkPolicy", "port 53 53: to anywhere"): "where a cluster answers names differs; some do on each node",
    ("NetworkPolicy", "port 443 6443: to anywhere"): "stores, the hub and Kubernetes' API have no fixed addresses",
    ("NetworkPolicy", "port PORT: to anywhere"): "the store of an on-prem cluster, whose address is not known here",
    ("Job", "image without tag or digest"): "a placeholder: whoever applies it names the image",
    ("ResourceFlavor", "is in no namespace"): "of the whole cluster, by Kueue's own definition",
    ("ClusterQueue", "is in no namespace"): "of the whole cluster, by Kueue's own definition",
    ("Role", "trainjobs: names no objects"): "a TrainJob is called by what it trains",
    ("Role", "trainingruntimes: names no objects"): "a run names its runtime",
    ("Role", "pods: names no objects"): "pods' names are made up when they are made",
    ("Role", "pods/log: names no objects"): "pods' names are made up when they are made",
    (
        "ClusterRole",
        "reaches beyond the namespace",
    ): "runtimes of Kubeflow Trainer are the whole cluster's; they are read",
    ("ClusterRole", "is in no namespace"): "of the whole cluster, by Kubernetes' own definition",
    ("ClusterRoleBinding", "reaches beyond the namespace"): "runtimes of Kubeflow Trainer are the whole cluster's",
    ("ClusterRoleBinding", "is in no namespace"): "of the whole cluster, by Kubernetes' own definition",
    ("PriorityClass", "is in no namespace"): "of the whole cluster, by Kubernetes' own definition",
}


@pytest.fixture(scope="module")
def with_component(tmp_path_factory):
    """An overlay of somebody's own: base and one component."""

    def built(component):
        folder = tmp_path_factory.mktemp("overlay")
        text = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(MANIFESTS / "base", folder)],
            "components": [os.path.relpath(MANIFESTS / component, folder)],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
        result = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return read(result.stdout)

    return built


@pytest.fixture(scope="module")
def built(with_component):
    """Every folder's objects."""
    folders = {folder: build(folder) for folder in ["base", *OVERLAYS, "models"]}
    return folders | {component: with_component(component) for component in COMPONENTS}


def test_there_is_nothing_else(built):
    folders = {path.parent.relative_to(MANIFESTS).as_posix() for path in MANIFESTS.rglob("kustomization.yaml")}
    assert folders == set(built)


def test_every_object_is_what_kubernetes_takes(built):
    """Strictly, by the schemas of the version that the pipeline was tried on and of the newest that are there."""
    for version in ("1.35", "1.37"):
        for objects in built.values():
            for (kind, _), item in objects.items():
                if kind not in KUEUE:
                    kubernetes_validate.validate(item, version, strict=True)


def test_the_schemas_notice_a_field_that_is_not_there(built):
    wrong = {**built["base"]["ResourceQuota", "free2ds"], "spec": {"hards": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="'hards' was unexpected"):
        kubernetes_validate.validate(wrong, "1.35", strict=True)


def test_kueues_objects_have_the_fields_that_kueue_knows(built):
    found = {kind: item for (kind, _), item in built["components/kueue"].items() if kind in KUEUE}
    assert {kind: set(item.get("spec", {})) for kind, item in found.items()} == KUEUE
    assert {item["apiVersion"] for item in found.values()} == {"kueue.x-k8s.io/v1beta2"}


def test_a_queue_covers_what_the_steps_ask_for(built):
    queue = built["components/kueue"]["ClusterQueue", "free2ds"]["spec"]
    (group,) = queue["resourceGroups"]
    assert set(group["coveredResources"]) == {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
    assert {row["name"] for row in group["flavors"][0]["resources"]} == set(group["coveredResources"])
    assert built["components/kueue"]["LocalQueue", "free2ds"]["spec"] == {"clusterQueue": "free2ds"}


def test_what_the_security_check_finds_has_a_reason(built):
    found = {
        (kind, problem)
        for objects in built.values()
        for (kind, _), item in objects.items()
        for problem in findings(item)
    }
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "Secret"}, "holds a credential in a file"),
        ({"kind": "ClusterRole"}, "reaches beyond the namespace"),
        (
            {"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}]},
            "has a wildcard",
        ),
        (
            {"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}]},
            "can become more than it is",
        ),
        (
            {"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]},
            "does more than read what it knows by name",
        ),
        ({"kind": "RoleBinding", "subjects": [{"kind": "Group", "name": "all"}]}, "binds Group all"),
        (
            {"kind": "NetworkPolicy", "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}},
            "does not say who, and both ways",
        ),
        (
            {"kind": "NetworkPolicy", "spec": {"podSelector": {}, "policyTypes": [], "egress": [{}]}},
            "lets everything through",
        ),
    ],
)
def test_the_security_check_notices(change, problem):
    assert problem in findings({"metadata": {"name": "x", "namespace": "kubeflow"}, **change})


@pytest.mark.parametrize(
    ("problem", "break_it"),
    [
        ("may run as root", lambda pod: pod["securityContext"].update(runAsNonRoot=False)),
        ("has no seccomp profile", lambda pod: pod["securityContext"].pop("seccompProfile")),
        ("has a token of Kubernetes' API", lambda pod: pod.pop("automountServiceAccountToken")),
        ("is in a namespace of its node", lambda pod: pod.update(hostNetwork=True)),
        ("has a volume that restricted forbids", lambda pod: pod["volumes"].append({"name": "a", "hostPath": {}})),
        ("may gain privileges", lambda pod: pod["containers"][0]["securityContext"].update(privileged=True)),
        ("keeps capabilities", lambda pod: pod["containers"][0]["securityContext"].pop("capabilities")),
        ("may write to its image", lambda pod: pod["containers"][0]["securityContext"].pop("readOnlyRootFilesystem")),
        ("has no limits", lambda pod: pod["containers"][0]["resources"].pop("limits")),
    ],
)
def test_the_security_check_notices_of_a_pod(problem, break_it):
    (job,) = yaml.safe_load_all(yaml.safe_dump(build("models")["Job", "free2ds-models"]))
    assert findings(job) == ["image without tag or digest"]
    break_it(job["spec"]["template"]["spec"])
    assert problem in findings(job)


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_an_installation_has_base_and_at_most_the_address_of_its_store(built, folder):
    store = {("ConfigMap", "free2ds-store")} if folder not in ("base", "overlays/gke") else set()
    assert set(built[folder]) == OF_BASE | store


def test_only_pods_of_runs_are_closed_off(built):
    policy = built["base"]["NetworkPolicy", "free2ds-steps"]["spec"]
    assert policy["podSelector"] == {"matchLabels": {"pipelines.kubeflow.org/v2_component": "true"}}
    assert policy["ingress"] == []


def test_node_credentials_and_workload_identity_are_reached(built):
    """The metadata servers of nodes, Google's Workload Identity and Amazon's Pod Identity."""
    rules = built["base"]["NetworkPolicy", "free2ds-steps"]["spec"]["egress"]
    (rule,) = [rule for rule in rules if any("ipBlock" in to for to in rule.get("to", []))]
    assert {to["ipBlock"]["cidr"] for to in rule["to"]} == {
        "169.254.169.254/32",
        "169.254.169.252/32",
        "169.254.170.23/32",
    }
    assert {port["port"] for port in rule["ports"]} == {80, 988}


def test_the_quota_lets_all_shards_of_a_run_work():
    """8 at the same time, two models each, and BERT: PARALLEL_SHARDS of pipeline.py."""
    import pipeline

    quota = build("base")["ResourceQuota", "free2ds"]["spec"]["hard"]
    assert quota == {"requests.nvidia.com/gpu": str(2 * pipeline.PARALLEL_SHARDS + 1)}


def test_base_ties_the_account_to_nothing(built):
    assert "annotations" not in built["base"]["ServiceAccount", "pipeline-runner"]["metadata"]


@pytest.mark.parametrize(
    ("folder", "annotations"),
    [
        ("overlays/gke", {"iam.gke.io/gcp-service-account": "free2ds@PROJECT.iam.gserviceaccount.com"}),
        ("overlays/eks", {"eks.amazonaws.com/role-arn": "arn:aws:iam::ACCOUNT:role/free2ds"}),
    ],
)
def test_a_cloud_ties_the_account_to_one_of_its_own(built, folder, annotations):
    assert built[folder]["ServiceAccount", "pipeline-runner"]["metadata"]["annotations"] == annotations


GS = {"gs": {"default": {"credentials": {"fromEnv": True}}}}
EKS = {"endpoint": "s3.REGION.amazonaws.com", "region": "REGION", "credentials": {"fromEnv": True}}
ON_PREM = {
    "endpoint": "STORE",
    "region": "us-east-1",
    "disableSSL": True,
    "credentials": {
        "fromEnv": False,
        "secretRef": {
            "secretName": "free2ds-store",
            "accessKeyKey": "AWS_ACCESS_KEY_ID",
            "secretKeyKey": "AWS_SECRET_ACCESS_KEY",
        },
    },
}


@pytest.mark.parametrize(
    ("folder", "root", "providers"),
    [
        ("base", "minio://mlpipeline/v2/artifacts", GS),
        ("overlays/kind", "minio://mlpipeline/v2/artifacts", GS),
        ("overlays/gke", "gs://BUCKET/free2ds", GS),
        ("overlays/eks", "s3://BUCKET/free2ds", {"s3": {"default": EKS}}),
        ("overlays/on-prem", "s3://BUCKET/free2ds", {"s3": {"default": ON_PREM}}),
    ],
)
def test_the_launcher_knows_where_artifacts_go(built, folder, root, providers):
    data = built[folder]["ConfigMap", "kfp-launcher"]["data"]
    assert data["defaultPipelineRoot"] == root
    assert yaml.safe_load(data["providers"]) == providers


@pytest.mark.parametrize(
    ("folder", "data"),
    [
        ("overlays/eks", {"AWS_DEFAULT_REGION": "REGION"}),
        ("overlays/on-prem", {"AWS_ENDPOINT_URL": "http://STORE", "AWS_DEFAULT_REGION": "us-east-1"}),
        (
            "overlays/kind",
            {"AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow.svc:9000", "AWS_DEFAULT_REGION": "us-east-1"},
        ),
    ],
)
def test_the_stages_know_where_the_store_is(built, folder, data):
    """By the ConfigMap and the keys that the pods look for."""
    from free2ds_common.launch.resources import ResourceSettings
    from free2ds_common.launch.store_access import CONFIG_MAP_KEYS

    assert built[folder]["ConfigMap", ResourceSettings.store_config_map]["data"] == data
    assert set(data) <= set(CONFIG_MAP_KEYS)


def test_on_prem_reaches_its_stores_port(built):
    egress = built["overlays/on-prem"]["NetworkPolicy", "free2ds-steps"]["spec"]["egress"]
    assert egress[:-1] == built["base"]["NetworkPolicy", "free2ds-steps"]["spec"]["egress"]
    assert egress[-1] == {"ports": [{"port": "PORT", "protocol": "TCP"}]}


def test_kind_can_provide_the_claim(built):
    claim = built["overlays/kind"]["PersistentVolumeClaim", "free2ds-models"]["spec"]
    assert claim == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}


def test_the_narrow_role_takes_the_place_of_kubeflows(built):
    base, narrow = built["base"], built["components/narrow-runner"]
    assert ("Role", "free2ds-runner") not in narrow
    assert narrow["Role", "pipeline-runner"]["rules"] == base["Role", "free2ds-runner"]["rules"]
    assert narrow["RoleBinding", "pipeline-runner-binding"]["roleRef"]["name"] == "pipeline-runner"


def test_the_step_may_do_what_a_training_on_several_nodes_asks_for(built):
    """By Kubeflow's SDK; see tests/support/trainer_stub.py, which answers nothing else."""
    objects = built["components/trainer"]
    rules = [rule for kind in ("Role", "ClusterRole") for rule in objects[kind, "free2ds-trainer"]["rules"]]
    assert {rule["resources"][0]: set(rule["verbs"]) for rule in rules} == {
        "trainjobs": {"create", "get", "delete"},
        "trainingruntimes": {"get"},
        "clustertrainingruntimes": {"get"},
        "pods": {"get", "list"},
        "pods/log": {"get"},
    }
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        binding = objects[kind, "free2ds-trainer"]
        assert [subject["name"] for subject in binding["subjects"]] == ["pipeline-runner"]
        assert binding["roleRef"]["name"] == "free2ds-trainer"


def test_the_role_reads_the_secrets_that_the_launcher_may_name(built):
    """Kubeflow's own, and the one that overlays name."""
    rules = built["base"]["Role", "free2ds-runner"]["rules"]
    (secrets,) = [rule for rule in rules if rule["resources"] == ["secrets"]]
    assert secrets["resourceNames"] == ["mlpipeline-minio-artifact", ON_PREM["credentials"]["secretRef"]["secretName"]]


def test_models_are_copied_from_the_hub(built, tmp_path):
    """The job's own program, with a hub that only says what it was asked for."""
    (tmp_path / "huggingface_hub.py").write_text(
        "def snapshot_download(name, revision, local_dir): print(name, revision, local_dir)\n"
    )
    (container,) = built["models"]["Job", "free2ds-models"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["python", "-c"]
    result = subprocess.run(
        [sys.executable, "-c", container["command"][2]],
        env={"PYTHONPATH": str(tmp_path), "MODELS": "owner/llava@abc bert"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        "owner/llava abc /models/llava",
        "owner/llava@abc is in /models/llava",
        "bert None /models/bert",
        "bert is in /models/bert",
    ]


def test_placeholders_are_the_ones_that_the_readme_says(built):
    """Upper-case words in the objects, what Kubernetes and the stages call so apart."""
    known = r"\b(AWS|HF)_\w+|\b(ALL|TCP|UDP|MODELS)\b"
    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    for folder, objects in built.items():
        words = set(re.findall(r"\b[A-Z_]{4,}\b", re.sub(known, "", yaml.safe_dump(list(objects.values())))))
        assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set(), folder

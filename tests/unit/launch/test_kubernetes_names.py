"""What Kubernetes and image registries accept, and what they would refuse only after a pod was asked for."""

import pytest

from free2ds_common.errors import SettingError, StageError
from free2ds_common.launch.kubernetes_names import (
    require_count,
    require_labels,
    require_quantity,
    require_registry,
    require_resource_name,
    require_tag,
    require_tolerations,
)


@pytest.mark.parametrize("value", ["1", "0.5", ".5", "500m", "8Gi", "32G", "1e3", "1E3", "12E", "100k", "1.", "2Ti"])
def test_quantities(value):
    require_quantity("memory", value)


@pytest.mark.parametrize(
    "value", ["", "0", "0Gi", "0.0", "32GB", "8gi", "8 Gi", "-1", "+1", "1Ki1", "Gi", "1,5", "K", "1e", "1\n", "\u0661"]
)
def test_no_quantities(value):
    with pytest.raises(SettingError, match=r"memory: got .*, wanted a Kubernetes quantity such as 500m, 2, 8Gi"):
        require_quantity("memory", value)


@pytest.mark.parametrize("value", ["0", "1", "16"])
def test_counts(value):
    require_count("gpu_count", value)


@pytest.mark.parametrize("value", ["", "-1", "1.0", "one", "1 ", "\u0661"])
def test_no_counts(value):
    with pytest.raises(SettingError, match=r"gpu_count: got .*, wanted a whole number such as 1, or 0 for none"):
        require_count("gpu_count", value)


@pytest.mark.parametrize("value", ["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb"])
def test_resource_names(value):
    require_resource_name("gpu_type", value)


@pytest.mark.parametrize("value", ["", "gpu", "nvidia.com/", "/gpu", "NVIDIA.com/gpu", "a/b/c", "nvidia.com/gpu "])
def test_no_resource_names(value):
    with pytest.raises(SettingError, match=r"gpu_type: got .*, wanted a resource such as nvidia.com/gpu"):
        require_resource_name("gpu_type", value)


@pytest.mark.parametrize(
    "labels", [{}, {"a": ""}, {"nvidia.com/gpu.present": "true"}, {"pool": "A-1_b.c", "x": "y" * 63}]
)
def test_labels(labels):
    require_labels("node_selector", labels)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([], r"got \[\], wanted a JSON object of labels"),
        ({"a b": "c"}, "'a b' is no name of a label"),
        ({"": "c"}, "'' is no name of a label"),
        ({"a" * 64: "c"}, "'a+' is no name of a label"),
        ({"a": True}, "a has True, wanted text"),
        ({"a": 1}, "a has 1, wanted text"),
        ({"a": "x" * 64}, "a has 'x+', wanted text of at most 63"),
        ({"a": "-b"}, "a has '-b', wanted text"),
        ({"a": "b/c"}, "a has 'b/c', wanted text"),
    ],
)
def test_no_labels(labels, problem):
    with pytest.raises(SettingError, match=f"node_selector: {problem}"):
        require_labels("node_selector", labels)


@pytest.mark.parametrize(
    "tolerations",
    [
        [],
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        [{"operator": "Exists"}],
        [{"key": "gpu", "value": "yes"}],
        [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60}],
    ],
)
def test_tolerations(tolerations):
    require_tolerations("tolerations", tolerations)


@pytest.mark.parametrize(
    ("toleration", "problem"),
    [
        ("gpu", "wanted an object with key, operator and effect"),
        ({"name": "gpu"}, "unknown field name, wanted some of effect, key, operator, tolerationSeconds, value"),
        ({"key": "a b", "operator": "Exists"}, "key 'a b' is no name of a taint"),
        ({"key": 1, "operator": "Exists"}, "key 1 is no name of a taint"),
        ({"key": "gpu", "operator": "exists"}, "operator 'exists', wanted Equal or Exists"),
        ({"key": "gpu", "operator": "Exists", "value": "yes"}, "operator Exists takes no value"),
        ({"key": "gpu", "value": True}, "value True, wanted text"),
        ({"effect": "NoSchedule"}, "no key: only operator Exists may leave it out"),
        ({"key": "gpu", "effect": "noschedule"}, "effect 'noschedule', wanted NoSchedule, PreferNoSchedule or NoExecu"),
        ({"key": "gpu", "tolerationSeconds": 60}, "tolerationSeconds, wanted a whole number, with effect NoExecute"),
        ({"key": "gpu", "effect": "NoExecute", "tolerationSeconds": "60"}, "tolerationSeconds, wanted a whole number"),
        ({"key": "gpu", "effect": "NoExecute", "tolerationSeconds": True}, "tolerationSeconds, wanted a whole number"),
    ],
)
def test_no_tolerations(toleration, problem):
    with pytest.raises(SettingError) as refused:
        require_tolerations("tolerations", [toleration])
    assert str(refused.value).startswith(f"tolerations: {toleration!r}: {problem}")


def test_tolerations_are_a_list():
    with pytest.raises(SettingError, match=r"tolerations: got {}, wanted a JSON list of tolerations"):
        require_tolerations("tolerations", {})


@pytest.mark.parametrize(
    "registry", ["r.example", "localhost:5000", "r.example/team", "r.example:443/a/b-c_d/", "[::1]:5000"]
)
def test_registries(registry):
    require_registry(registry)


@pytest.mark.parametrize(
    "registry", ["https://r.example", "r.example/Team", "r.example//x", "r.example/team:1", "r example", "/team", "r@x"]
)
def test_no_registries(registry):
    with pytest.raises(StageError, match=r"--registry: got .*, wanted host\[:port\]\[/path\] in lower case"):
        require_registry(registry)


@pytest.mark.parametrize("tag", ["dev", "1.2.3", "v1_x-y", "a" * 128])
def test_tags(tag):
    require_tag(tag)


@pytest.mark.parametrize("tag", ["v1:2", "a/b", "-a", ".a", "a b", "a" * 129, "ä"])
def test_no_tags(tag):
    with pytest.raises(StageError, match=r"--tag: got .*, wanted up to 128 letters, digits"):
        require_tag(tag)

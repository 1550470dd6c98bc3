"""What is in an image and what is not."""

import re

import pytest

from free2ds_common import __version__
from images import build
from tests.images.conftest import BASE_IMAGE, REPOSITORY, docker

STAGES = build.stages()
WITH_MODELS = ("bert_features", "llava_attention", "mgm_attention")
# MB of the CPU variant beyond the base image; the README has what was measured.
BUDGET_MB = {
    "split": 200, "ingest": 300, "cluster_scoring": 300, "joint_selection": 350,
    "bert_features": 1250, "llava_attention": 1300, "mgm_attention": 1300,
}  # fmt: skip
# Everything but the base's own files and what the kernel provides.
OURS = "find /opt /app"


def shell(image, script):
    return docker("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", image, "-c", script).stdout


@pytest.mark.parametrize("stage", STAGES)
class TestImage:
    def test_size(self, images, base, stage):
        beyond = (images[stage]["Size"] - base["Size"]) / 1e6
        assert beyond <= BUDGET_MB[stage], f"{beyond:.0f} MB beyond the base image"

    def test_runs_as_nobodys_user_and_says_what_it_is(self, images, stage):
        config = images[stage]["Config"]
        assert config["User"] == "10001" and config["Entrypoint"] == ["python", "-m", f"components.{stage}"]
        labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
        assert labels["version"] == __version__
        assert labels["title"] == f"free2ds-{stage.replace('_', '-')}" and labels["licenses"] == "Apache-2.0"
        assert labels["source"] and re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["revision"])

    def test_nothing_is_world_writable_and_no_setuid_file_was_added(self, images, stage):
        image = build.image_name(stage, "", "dev")
        assert shell(image, f"{OURS} -perm -0002 ! -type l") == ""
        setuid = "find / -xdev -perm /6000 -type f | sort"
        assert shell(image, setuid) == shell(BASE_IMAGE, setuid)

    def test_no_tools_caches_tests_or_weights(self, images, stage):
        image = build.image_name(stage, "", "dev")
        names = ["pip", "gcc", "cc", "g++", "protoc", "protoc-*", "tests", "test", "*.safetensors", "*.gguf", "*.whl"]
        wanted = " -o ".join(f"-name '{name}'" for name in names)
        assert shell(image, f"find /opt /app /tmp /root /build {wanted} 2>/dev/null; true") == ""
        assert shell(image, "find /app -name '*.md' -o -name '*.in'") == ""
        assert shell(image, "ls -A /tmp /root 2>/dev/null | grep -v -e '^$' -e ':$' -e bashrc -e profile; true") == ""
        big = "find /opt /app -size +1M \\( -name '*.bin' -o -name '*.pt' -o -name '*.pth' -o -name '*.npz' \\)"
        assert shell(image, big) == ""

    def test_only_its_own_code_is_in_it(self, images, stage):
        image = build.image_name(stage, "", "dev")
        assert shell(image, "ls /app/components").split() == sorted(["__init__.py", stage])
        assert shell(image, "ls /app").split() == ["components", "free2ds_common"]

    def test_installed_is_what_the_lock_says(self, images, stage):
        lines = (REPOSITORY / "images" / stage / "requirements.txt").read_text(encoding="utf-8").splitlines()
        wanted = dict(re.match(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#"))
        code = (
            "from importlib.metadata import distributions as all_of; "
            "[print(d.metadata['Name'].lower().replace('_', '-').replace('.', '-'), d.version) for d in all_of()]"
        )
        found = dict(
            line.split() for line in shell(build.image_name(stage, "", "dev"), f'python -c "{code}"').splitlines()
        )
        found = {name: version.partition("+")[0] for name, version in found.items()}
        constraints = (REPOSITORY / "images/constraints.txt").read_text(encoding="utf-8")
        assert found.pop("kfp") == re.search(r"^kfp==(\S+)", constraints, re.MULTILINE)[1]
        if stage in WITH_MODELS:  # the layer that three images share may hold more than one of them asks for
            assert wanted.items() <= found.items()
        else:
            assert found == wanted

    def test_help_on_a_read_only_root_without_network_as_any_user(self, images, stage):
        image = build.image_name(stage, "", "dev")
        result = docker("run", "--rm", "--read-only", "--network", "none", "--user", "4321:4321", image, "--help")
        assert result.stdout.startswith(f"usage: python -m components.{stage}")


def test_torch_is_one_layer(images, base):
    layers = [set(images[stage]["RootFS"]["Layers"]) - set(base["RootFS"]["Layers"]) for stage in WITH_MODELS]
    assert len(set.intersection(*layers)) >= 1
    size = shell(build.image_name("mgm_attention", "", "dev"), "du -sm /opt/torch").split()[0]
    assert int(size) > 500

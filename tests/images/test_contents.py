"""What is in an image and what is not."""

import re

import pytest

from free2ds_common import __version__
from images import build
from tests.images.conftest import BASE_IMAGE, docker
from tests.support.images import CUDA_ONLY, STAGES, WITH_MODELS, lock_path, read_lock

# MB of the CPU variant beyond the base image; the README has what was measured.
BUDGET_MB = {
    "split": 200,
    "resolve": 300,
    "reuse": 320,
    "ingest": 300,
    "cluster_scoring": 350,
    "joint_selection": 350,
    "bert_features": 1250,
    "evaluate": 1300,
    "finetune": 1350,
    "llava_attention": 1300,
    "mgm_attention": 1300,
    "verdict": 250,
}
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
        assert config["User"] == "10001"
        assert config["Entrypoint"] == ["python", "-m", f"components.{stage}"]
        labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
        assert labels["version"] == __version__
        assert labels["title"] == f"free2ds-{stage.replace('_', '-')}"
        assert labels["licenses"] == "Apache-2.0"
        assert labels["source"] != ""
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["revision"])

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
        assert shell(image, "find /app -name '*.md'") == ""
        assert shell(image, "ls -A /tmp /root 2>/dev/null | grep -v -e '^$' -e ':$' -e bashrc -e profile; true") == ""
        big = "find /opt /app -size +1M \\( -name '*.bin' -o -name '*.pt' -o -name '*.pth' -o -name '*.npz' \\)"
        assert shell(image, big) == ""

    def test_only_its_own_code_is_in_it(self, images, stage):
        image = build.image_name(stage, "", "dev")
        # Resolve checks the settings of all others, and reuse reads those of both models' stages.
        code = {"resolve": STAGES, "reuse": [stage, "llava_attention", "mgm_attention"]}.get(stage, [stage])
        assert shell(image, "ls /app/components").split() == sorted(["__init__.py", *code])
        assert shell(image, "ls /app").split() == ["components", "free2ds_common"]

    def test_the_commands_that_start_stages_are_not_in_it(self, images, stage):
        folders = shell(build.image_name(stage, "", "dev"), "cd /app/free2ds_common && ls -d */ | grep -v __pycache__")
        assert folders.split() == ["inference/", "results_store/"]

    def test_installed_is_what_the_lock_says(self, images, stage):
        locks = [lock_path(stage), lock_path("kfp"), *([lock_path("torch")] if stage in WITH_MODELS else [])]
        wanted = {name: pin.version for path in locks for name, pin in read_lock(path).items()}
        wanted = {name: version for name, version in wanted.items() if not CUDA_ONLY.match(name)}
        code = (
            "from importlib.metadata import distributions as all_of; "
            "[print(d.metadata['Name'].lower().replace('_', '-').replace('.', '-'), d.version) for d in all_of()]"
        )
        found = dict(
            line.split() for line in shell(build.image_name(stage, "", "dev"), f'python -c "{code}"').splitlines()
        )
        found = {name: version.partition("+")[0] for name, version in found.items()}
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

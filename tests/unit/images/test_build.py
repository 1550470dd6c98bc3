"""images/build.py, with a docker that only notes how it was called."""

import itertools
import json
import re
import subprocess

import pytest

from free2ds_common import __version__
from images import build
from tests.support.images import REPOSITORY, STAGES

REVISION = "0123456789abcdef0123456789abcdef01234567"
SOURCE = "https://host.example/team/free2ds.git"


class FakeSubprocess:
    """Stands in for the module: answers git, notes the calls of docker and fails the one that it was told to."""

    CalledProcessError = subprocess.CalledProcessError
    DEVNULL = subprocess.DEVNULL
    PIPE = subprocess.PIPE

    def __init__(self):
        self.git = {
            "rev-parse HEAD": REVISION,
            "status --porcelain": "",
            "config --get remote.origin.url": SOURCE,
        }
        self.docker = []
        self.folders = []
        self.fails = None

    def run(self, command, *, check=False, cwd=None, **_):
        if command[0] == "git":
            return subprocess.CompletedProcess(command, 0, self.git[" ".join(command[3:])])
        self.docker.append(command)
        self.folders.append(cwd)
        failed = self.fails is not None and command[1] == self.fails[0] and self.fails[1] in " ".join(command)
        if failed and check:
            raise subprocess.CalledProcessError(1, command)
        repository = command[-1].rpartition(":")[0]
        answer = json.dumps([f"{repository}@sha256:{len(repository)}"]) if command[1] == "image" else ""
        return subprocess.CompletedProcess(command, int(failed), answer)

    def builds(self):
        return [command for command in self.docker if command[1] == "build"]

    def build_of(self, stage):
        (found,) = [command for command in self.builds() if f"images/{stage}/Dockerfile" in command]
        return found

    def arguments_of(self, stage):
        """The build arguments that a stage's image was given."""
        command = self.build_of(stage)
        given = [value for option, value in itertools.pairwise(command) if option == "--build-arg"]
        return dict(argument.split("=", 1) for argument in given)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeSubprocess()
    monkeypatch.setattr(build, "subprocess", fake)
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/usr/bin/{name}")
    return fake


LABELS = {"SOURCE": SOURCE, "REVISION": REVISION, "VERSION": __version__}


class TestCommand:
    def test_every_stage_is_built_once(self, fake):
        assert build.main([]) == 0
        built = [command[command.index("--file") + 1] for command in fake.builds()]
        assert built == [f"images/{stage}/Dockerfile" for stage in STAGES]

    def test_from_the_root_of_the_repository(self, fake):
        build.main([])
        assert set(fake.folders) == {REPOSITORY}
        assert {command[-1] for command in fake.builds()} == {"."}

    def test_tag(self, fake):
        build.main(["--registry", "registry.example/team/", "--tag", "1.2.3"])
        command = fake.build_of("mgm_attention")
        assert command[command.index("--tag") + 1] == "registry.example/team/free2ds-mgm-attention:1.2.3"

    def test_network(self, fake):
        build.main(["--network", "host"])
        command = fake.build_of("split")
        assert command[command.index("--network") + 1] == "host"

    def test_no_network_is_asked_for_otherwise(self, fake):
        build.main([])
        assert "--network" not in fake.build_of("split")

    @pytest.mark.parametrize(
        ("stage", "given"),
        [
            ("split", {"BASE_IMAGE": "base:1", "EXTRA_INDEX": "https://index.example"}),
            ("cluster_scoring", {"BASE_IMAGE": "base:1", "EXTRA_INDEX": "https://index.example", "FAISS": "faiss-gpu"}),
            ("mgm_attention", {"BASE_IMAGE": "base:1", "EXTRA_INDEX": "https://index.example", "VARIANT": "cpu"}),
            (
                "evaluate",
                {
                    **{"BASE_IMAGE": "base:1", "EXTRA_INDEX": "https://index.example", "VARIANT": "cpu"},
                    "HARNESS": "lmms-eval",
                },
            ),
        ],
    )
    def test_a_stage_gets_the_arguments_that_its_dockerfile_knows(self, fake, stage, given):
        build.main(
            [
                *("--base-image", "base:1", "--extra-index", "https://index.example"),
                *("--faiss", "faiss-gpu", "--variant", "cpu", "--harness", "lmms-eval"),
            ]
        )
        assert fake.arguments_of(stage) == {**given, **LABELS}

    def test_what_is_empty_is_left_to_the_dockerfile(self, fake):
        build.main([])
        assert fake.arguments_of("split") == LABELS

    def test_nothing_is_pushed_unless_asked_for(self, fake):
        build.main(["--registry", "registry.example"])
        assert {command[1] for command in fake.docker} == {"build"}


class TestFailure:
    def test_the_image_is_named(self, fake, capsys):
        fake.fails = ("build", "images/cluster_scoring/Dockerfile")
        assert build.main([]) == 1
        error = capsys.readouterr().err
        assert error == "error: free2ds-cluster-scoring:dev was not built; the lines above say why.\n"

    def test_the_next_ones_are_not_built(self, fake):
        fake.fails = ("build", "images/cluster_scoring/Dockerfile")
        build.main([])
        assert len(fake.builds()) == STAGES.index("cluster_scoring") + 1

    def test_an_image_that_was_not_built_is_not_pushed(self, fake, tmp_path):
        fake.fails = ("build", f"images/{STAGES[0]}/Dockerfile")
        build.main(["--push", "--registry", "registry.example", "--digests", str(tmp_path / "digests.json")])
        assert {command[1] for command in fake.docker} == {"build"}

    def test_a_push(self, fake, capsys, tmp_path):
        digests = tmp_path / "digests.json"
        fake.fails = ("push", "free2ds-ingest")
        assert build.main(["--push", "--registry", "registry.example", "--digests", str(digests)]) == 1
        error = capsys.readouterr().err
        assert error == "error: registry.example/free2ds-ingest:dev was not pushed; the lines above say why.\n"
        assert not digests.exists()

    def test_no_docker(self, fake, monkeypatch, capsys):
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
        assert build.main([]) == 2
        assert capsys.readouterr().err == "error: docker is not installed.\n"

    def test_pushing_without_a_registry(self, fake, capsys):
        with pytest.raises(SystemExit, match=r"^2$"):
            build.main(["--push"])
        assert "error: --push: no --registry given" in capsys.readouterr().err
        assert fake.docker == []


class TestPush:
    def test_digests_are_written_by_image(self, fake, tmp_path):
        path = tmp_path / "digests.json"
        assert build.main(["--push", "--registry", "r.example/t", "--tag", "1", "--digests", str(path)]) == 0
        names = [f"free2ds-{stage.replace('_', '-')}" for stage in STAGES]
        # The fake's digest is the length of the repository's name: "r.example/t/" has twelve letters.
        assert json.loads(path.read_text()) == {name: f"sha256:{len(name) + 12}" for name in names}

    def test_every_image_is_pushed_once_it_is_built(self, fake, tmp_path):
        build.main(["--push", "--registry", "r.example", "--digests", str(tmp_path / "digests.json")])
        assert [command[1] for command in fake.docker] == ["build", "push", "image"] * len(STAGES)

    def test_what_is_pushed_is_what_was_built(self, fake, tmp_path):
        build.main(["--push", "--registry", "r.example", "--tag", "7", "--digests", str(tmp_path / "digests.json")])
        pushed = [command[-1] for command in fake.docker if command[1] == "push"]
        assert pushed == [build.image_name(stage, "r.example", "7") for stage in STAGES]

    def test_the_next_command_is_printed(self, fake, tmp_path, capsys):
        path = tmp_path / "digests.json"
        build.main(["--push", "--registry", "r.example", "--digests", str(path)])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"{path}: python pipeline.py compile --registry r.example --digests {path}"

    @pytest.mark.parametrize(
        ("name", "digest"),
        [("docker.io/team/free2ds-split:1.2", "sha256:3"), ("other.example/free2ds-split:1.2", "sha256:1")],
    )
    def test_the_digest_is_the_latest_of_that_repository(self, name, digest):
        known = ["other.example/free2ds-split@sha256:1", "team/free2ds-split@sha256:2", "team/free2ds-split@sha256:3"]
        assert build.digest_of(known, name) == digest


@pytest.mark.parametrize(
    ("registry", "name"), [("", "free2ds-mgm-attention:1"), ("r.example/t/", "r.example/t/free2ds-mgm-attention:1")]
)
def test_image_names(registry, name):
    assert build.image_name("mgm_attention", registry, "1") == name


class TestLabels:
    def test_they_say_what_was_built(self, fake):
        assert build.labels() == LABELS

    def test_changes_that_are_not_committed_show(self, fake):
        fake.git["status --porcelain"] = " M README.md\n"
        assert build.labels()["REVISION"] == f"{REVISION}-dirty"

    def test_without_git(self, monkeypatch):
        def run(*_, **__):
            raise FileNotFoundError("git")

        monkeypatch.setattr(build.subprocess, "run", run)
        assert build.labels() == {"SOURCE": "unknown", "REVISION": "unknown", "VERSION": __version__}

    def test_of_this_checkout(self):
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", build.labels()["REVISION"])

    @pytest.mark.parametrize(
        ("remote", "source"),
        [
            ("https://user:secret@host.example/team/repo.git", "https://host.example/team/repo.git"),
            ("https://host.example/team/repo", "https://host.example/team/repo"),
            ("ssh://git@host.example:22/repo", "ssh://host.example:22/repo"),
            ("/home/me/repo", "unknown"),
            ("file:///home/me/repo", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_no_password_gets_into_one(self, remote, source):
        assert build.public_source(remote) == source

    def test_the_version_must_be_there(self, monkeypatch, tmp_path):
        (tmp_path / "free2ds_common").mkdir()
        (tmp_path / "free2ds_common/__init__.py").write_text("")
        monkeypatch.setattr(build, "REPOSITORY", tmp_path)
        with pytest.raises(ValueError, match=r"free2ds_common/__init__\.py: no line __version__"):
            build.version()

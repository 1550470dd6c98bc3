"""The commands: exit codes, what is refused before anything starts, and how images are named."""

import itertools
import os
import signal

import pytest

import pipeline
from free2ds_common.errors import StageError
from free2ds_common.launch import cli, preflight
from free2ds_common.launch.cli import released_name

REQUIRED = ["--param", "dataset_uri=d.json", "--param", "image_root_uri="]


@pytest.fixture
def local_run(monkeypatch, tmp_path):
    """Replaces the run on this machine; a test says what it does."""

    def install(work):
        seen = []

        def run_locally(run):
            seen.append(run)
            return work()

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(cli, "run_locally", run_locally)
        monkeypatch.setattr(preflight, "check_inputs", lambda package, values, only_local: None)
        return seen

    return install


@pytest.mark.parametrize("exit_code", [0, 1, 2])
def test_a_run_exits_as_its_graph_did(local_run, exit_code, tmp_path):
    local_run(lambda: exit_code)
    assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED]) == exit_code


def test_interrupting_exits_with_130(local_run, tmp_path, capsys):
    def interrupted():
        raise KeyboardInterrupt

    local_run(interrupted)
    assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED]) == 130
    assert capsys.readouterr().err == "interrupted; every stage was stopped\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_end_a_process_interrupt_a_command_and_only_that(local_run, number, tmp_path):
    before = signal.getsignal(number)
    local_run(lambda: os.kill(os.getpid(), number))
    assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED]) == 130
    assert signal.getsignal(number) == before


def test_a_run_under_nohup_survives_the_end_of_its_terminal(local_run, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        local_run(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0)
        assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_crash_keeps_its_traceback(local_run, tmp_path):
    local_run(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED])


def test_what_a_run_is_started_with(local_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = local_run(lambda: 0)
    pipeline.main(["run", "--output-dir", "out", "--keep-work", *REQUIRED, "--param", "num_shards=7"])
    (run,) = seen
    assert run.values == {
        "gpu_count": "0",
        "num_clusters": 0,
        "dataset_uri": f"{tmp_path}/d.json",
        "image_root_uri": "",
        "num_shards": 7,
        "cache_uri": f"{tmp_path}/cache/free2ds/results",
    }
    assert run.num_shards == 7
    assert run.output_dir == tmp_path / "out"
    assert run.keep_work
    assert not run.in_images


def test_a_run_on_this_machine_may_ask_for_a_gpu(local_run, tmp_path):
    seen = local_run(lambda: 0)
    pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED, "--param", "gpu_count=1"])
    assert seen[0].values["gpu_count"] == "1"


def test_the_number_of_shards_is_not_known_before(local_run, tmp_path):
    seen = local_run(lambda: 0)
    pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED])
    assert seen[0].num_shards == 0


@pytest.mark.parametrize("option", [["--registry", "r", "--tag", "1"], ["--network", "n"]])
def test_options_of_images_without_images_are_refused(local_run, option, tmp_path, capsys):
    seen = local_run(lambda: 0)
    assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED, *option]) == 2
    assert capsys.readouterr().err.startswith("error: --registry and --network: only --runner docker uses images.")
    assert seen == []


def test_the_docker_runner_asks_for_its_images(local_run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "require_images", lambda images, local_only: asked.append((images, local_only)))
    seen = local_run(lambda: 0)
    options = ["--runner", "docker", "--registry", "r.example", "--tag", "1", "--network", "mine"]
    assert pipeline.main(["run", "--output-dir", str(tmp_path), *REQUIRED, *options]) == 0
    ((images, local_only),) = asked
    assert images[0] == "r.example/free2ds-bert-features:1"
    assert not local_only
    assert seen[0].in_images
    assert seen[0].network == "mine"
    assert seen[0].package.images == images


def test_parameters_are_printed_as_a_table(capsys):
    assert pipeline.main(["parameters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| parameter | default | meaning |"
    assert '| `num_samples` | `0` | Exact number to select; 0 means "use ratio". |' in lines
    parameters = [line.split("`")[1] for line in itertools.takewhile(bool, lines) if "`" in line]
    # As the form lists them.
    assert parameters == sorted(parameters)
    assert (
        "| `stratify` | `select_options`: `stratify` | empty | source draws within each source in proportion; "
        "empty draws over all records. |" in lines
    )
    assert (
        "| `max_new_tokens` | `llava_options`, `mgm_options`: `max_new_tokens` | `100` | The same for all models. |"
        in lines
    )
    assert (
        "| `split` | 1 | 2Gi (limit) | an external sort of 50,000 records at a time | 2 h | "
        "yes: its input is an artifact |" in lines
    )


def test_help_lists_every_parameter_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(["run", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "  alpha: Weight of the text side, in [0, 1]. (default 0.5)" in shown
    assert "gs://bucket/dataset.json. (required)" in shown


DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def test_images_keep_their_names_without_a_registry():
    assert released_name("", "", None)("free2ds-split:dev") == "free2ds-split:dev"


@pytest.mark.parametrize("registry", ["r.example/team", "r.example/team/"])
def test_a_registry_and_a_tag(registry):
    assert released_name(registry, "1.2", None)("free2ds-split:dev") == "r.example/team/free2ds-split:1.2"


def test_digests_win_over_the_tag():
    name = released_name("r.example", "1.2", {"free2ds-split": DIGEST})
    assert name("free2ds-split:dev") == f"r.example/free2ds-split@{DIGEST}"


@pytest.mark.parametrize("digest", [DIGEST[:-1], f"{DIGEST}0", DIGEST.upper(), DIGEST.removeprefix("sha256:"), 7, ""])
def test_a_digest_of_another_form_is_refused(digest):
    name = released_name("r.example", "", {"free2ds-split": digest})
    with pytest.raises(StageError, match=r"--digests: free2ds-split has .*, wanted sha256: and 64 hex digits\."):
        name("free2ds-split:dev")


def test_a_run_knows_its_command_without_credentials(local_run, tmp_path):
    seen = local_run(lambda: 0)
    data = "dataset_uri=https://me:secret@host/a b.json"
    pipeline.main(["run", "--output-dir", str(tmp_path), "--param", data, "--param", "image_root_uri="])
    assert seen[0].command == (
        f"free2ds run --output-dir {tmp_path} --param 'dataset_uri=https://***@host/a b.json' --param image_root_uri="
    )

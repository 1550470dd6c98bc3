"""The whole pipeline on a real backend. The tests stand in the order in which they have to run."""

import hashlib
import json

import pytest

from free2ds_common.launch.resources import GPU_NODE_SELECTOR, GPU_TOLERATIONS, NEEDS
from tests.cluster import commands
from tests.cluster.cluster import NEVER_CACHED, STAGES, STEPS, WITH_MODELS, done, seconds, steps
from tests.cluster.settings import GROWN, NO_GPU, RECORDS, SMALL


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


class TestFirstRun:
    def test_it_succeeds(self, settings, first):
        run, _ = first
        assert run.state == "SUCCEEDED", commands.why(settings, run.run_id)

    def test_submit_prints_its_page_in_the_ui(self, settings, first):
        run, text = first
        assert f"{settings.ui_host.rstrip('/')}/#/runs/details/{run.run_id}" in text

    def test_every_step_did_its_work(self, first):
        """Two shards for each model, and the division into them."""
        run, _ = first
        twice = ("llava-attention", "mgm-attention", "split")
        assert {step: done(run, step) for step in STEPS} == {step: 2 if step in twice else 1 for step in STEPS}

    def test_it_selects_byte_for_byte_what_this_machine_selects(self, first, fetched, selected_here):
        assert (fetched(first[0]) / "selected.json").read_bytes() == selected_here("dataset.json")

    def test_all_results_are_fetched(self, first, fetched):
        names = {path.name for path in fetched(first[0]).iterdir()}
        results = {"selected.json", "random.json", "scores", "rejects.jsonl", "report.html", "summary.json"}
        assert results - names == set()

    def test_why_finds_nothing_wrong(self, settings, first):
        assert "error" not in commands.why(settings, first[0].run_id).lower()

    def test_lineage_leads_back_to_data_models_and_images(self, settings, first, workplace):
        text = json.dumps(commands.lineage(settings, first[0].run_id))
        digest = hashlib.sha256((workplace.folder / "dataset.json").read_bytes()).hexdigest()
        wanted = [digest, *(f"{workplace.uri}/models/{name}" for name in ("llava", "mgm", "bert"))]
        # A step that only passes rows on leaves no table of its own.
        wanted += [f"free2ds-{stage}" for stage in sorted(WITH_MODELS | {"ingest", "joint-selection"})]
        assert [word for word in wanted if word not in text] == []

    def test_lineage_needs_nothing_but_the_selection(self, settings, first):
        found = commands.lineage(settings, first[0].run_id)
        assert commands.lineage_of_file(found["selected"]["place"]) == found


@pytest.fixture(scope="module")
def pods(first, kubernetes):
    found = kubernetes.pods(first[0].run_id)
    if not found:
        pytest.skip("the pods of the first run are gone already: the cluster removes what has ended")
    return found


class TestPods:
    def test_each_step_had_one(self, pods):
        assert {pod.stage for pod in pods} == STAGES

    def test_steps_with_a_model_had_the_gpus_and_no_others_had_any(self, settings, pods):
        assert {pod.stage: pod.gpus for pod in pods} == {
            stage: (settings.gpu or "0") if stage in WITH_MODELS else "0" for stage in STAGES
        }

    def test_they_asked_for_what_the_command_said(self, pods):
        asked = {pod.stage: (pod.main.resources.requests["cpu"], pod.main.resources.requests["memory"]) for pod in pods}
        assert asked == dict.fromkeys(STAGES, (SMALL["cpu"], SMALL["memory"]))

    def test_the_memory_of_those_with_a_bound_was_limited(self, pods):
        limits = {pod.stage: (pod.main.resources.limits or {}).get("memory") for pod in pods}
        bound = {stage for stage in STAGES if NEEDS[stage.replace("-", "_")].limited}
        assert limits == dict.fromkeys(STAGES) | dict.fromkeys(bound, SMALL["memory"])

    def test_steps_with_a_model_chose_their_node_and_bore_its_taints(self, settings, pods, kubernetes):
        selector = settings.resources.get("gpu_node_selector", GPU_NODE_SELECTOR)
        tolerations = settings.resources.get("gpu_tolerations", GPU_TOLERATIONS)
        for pod in pods:
            if pod.stage in WITH_MODELS:
                assert (pod.raw.spec.node_selector or {}) == selector
                borne = [(taint.key, taint.operator, taint.effect) for taint in pod.raw.spec.tolerations or []]
                wanted = [(taint.get("key"), taint.get("operator"), taint.get("effect")) for taint in tolerations]
                assert [taint for taint in wanted if taint not in borne] == []
                assert selector.items() <= kubernetes.labels_of(pod.raw.spec.node_name).items()
            else:
                assert not pod.raw.spec.node_selector

    def test_all_pass_pod_security_restricted(self, pods):
        for pod in pods:
            context = pod.main.security_context
            assert (context.run_as_user, context.run_as_non_root) == (10001, True)
            assert context.allow_privilege_escalation is False
            assert context.capabilities.drop == ["ALL"]
            seccomp = context.seccomp_profile or pod.raw.spec.security_context.seccomp_profile
            assert seccomp.type == "RuntimeDefault"


def test_an_equal_run_comes_from_the_cache(start, data):
    run = start("equal", data("dataset.json", "first.json"))
    assert run.state == "SUCCEEDED"
    assert {stage: set(states) for stage, states in steps(run).items() if stage not in NEVER_CACHED} == {
        stage: {"SKIPPED"} for stage in STEPS - NEVER_CACHED
    }


def test_a_data_set_that_changed_in_its_place_is_read_again(settings, start, data, fetched, selected_here):
    run = start("changed", data("grown.json", "first.json"))
    assert run.state == "SUCCEEDED", commands.why(settings, run.run_id)
    assert done(run, "ingest") == 1
    assert (fetched(run) / "selected.json").read_bytes() == selected_here("grown.json")


def test_a_run_survives_the_loss_of_a_pod(settings, backend, kubernetes, data, fetched, selected_here):
    run_id, _ = commands.submit(settings, data("dataset.json", "lost.json"), "lost pod")

    def working():
        running = [pod for pod in kubernetes.pods(run_id) if pod.raw.status.phase == "Running"]
        return next((pod for pod in running if pod.stage in WITH_MODELS), None)

    lost = backend.until("a step with a model works", working, settings.run_timeout_s)
    kubernetes.delete(lost)
    run = backend.finished(run_id)
    assert run.state == "SUCCEEDED", commands.why(settings, run_id)
    assert lost.name not in {pod.name for pod in kubernetes.pods(run_id)}
    assert (fetched(run) / "selected.json").read_bytes() == selected_here("dataset.json")


@pytest.mark.parametrize("setting", ["dataset_uri", "bert_model"])
def test_a_wrong_set_up_is_soon_known_by_its_own_sentence(settings, start, data, workplace, setting):
    missing = f"{workplace.uri}/there-is-nothing"
    run = start(f"wrong {setting}", {**data("dataset.json", "wrong.json"), setting: missing})
    assert run.state == "FAILED"
    assert seconds(run.created_at, run.finished_at) < settings.failure_timeout_s
    assert missing in commands.why(settings, run.run_id)


def test_a_cluster_without_gpus_is_a_set_of_parameters(settings, start, data, fetched, selected_here):
    if not settings.gpu:
        pytest.skip("every run of this session has these parameters: GPU is empty")
    run = start("no GPU", {**data("dataset.json", "no-gpu.json"), **NO_GPU})
    assert run.state == "SUCCEEDED", commands.why(settings, run.run_id)
    assert (fetched(run) / "selected.json").read_bytes() == selected_here("dataset.json")


def test_many_shards_fit(settings, start, data, fetched, selected_here):
    if not settings.shards:
        pytest.skip("takes long: SHARDS=64 runs it")
    run = start("many shards", {**data("dataset.json", "shards.json"), "num_shards": settings.shards})
    assert run.state == "SUCCEEDED", commands.why(settings, run.run_id)
    assert (fetched(run) / "selected.json").read_bytes() == selected_here("dataset.json")


@pytest.fixture(scope="module")
def both(settings, backend, workplace, data):
    """The runs of a schedule that fires twice; in between the data set grows."""
    values = data("dataset.json", "scheduled.json") | {"cache_uri": f"{workplace.uri}/cache"}
    schedule_id = commands.schedule(settings, values, workplace.schedule)

    def runs():
        return backend.runs_of(schedule_id, commands.EXPERIMENT)

    def started_after(known):
        return next((run for run in runs() if run.run_id not in known), None)

    try:
        once = backend.until("the schedule fires", lambda: started_after(set()), settings.run_timeout_s)
        once = backend.finished(once.run_id)
        # No run begins while the data set grows: it could have read either.
        commands.pause(settings, workplace.schedule)
        known = {backend.finished(run.run_id).run_id for run in runs()}
        data("grown.json", "scheduled.json")
        commands.resume(settings, workplace.schedule)
        twice = backend.until("it fires again", lambda: started_after(known), settings.run_timeout_s)
        twice = backend.finished(twice.run_id)
    finally:
        said = commands.unschedule(settings, workplace.schedule)
    assert said.code == 0, said.text
    return once, twice


class TestSchedule:
    def test_both_runs_succeed(self, settings, both):
        assert [run.state for run in both] == ["SUCCEEDED", "SUCCEEDED"], commands.why(settings, both[1].run_id)

    def test_each_selects_of_the_data_set_as_it_was(self, both, fetched, selected_here):
        once, twice = [(fetched(run) / "selected.json").read_bytes() for run in both]
        assert once == selected_here("dataset.json")
        assert twice == selected_here("grown.json")

    @pytest.mark.parametrize("model", ["llava", "mgm"])
    def test_the_second_scores_only_what_is_new(self, both, fetched, model):
        once, twice = (summary_of(fetched(run))["reuse"][model] for run in both)
        assert once["reused"] == 0
        assert twice["reused"] >= once["computed"]
        assert 0 < twice["computed"] <= GROWN - RECORDS

    def test_the_second_asks_for_no_more_pods(self, both):
        once, twice = both
        assert done(twice, "ingest") == 1
        assert 1 <= done(twice, "llava-attention") <= done(once, "llava-attention")

    def test_the_summary_counts_all_records(self, both, fetched):
        assert [summary_of(fetched(run))["counts"]["read"] for run in both] == [RECORDS, GROWN]


def test_nothing_is_left_behind_but_the_runs(backend, workplace):
    workplace.remove()
    assert workplace.left() == []
    assert workplace.schedule not in {schedule.display_name for schedule in backend.schedules()}

"""An imitation of Kubeflow Pipelines with Kubernetes below it: runs that are started end, with results in a store.

What a run does is decided when it is started, by rules as simple as can be; `flaws` names the ones to break. Every look
at a run takes it a step further.
"""

import hashlib
import json
import tempfile
from datetime import timedelta
from pathlib import Path

import fsspec
import kfp_server_api as api

from free2ds_common.datasets import DatasetWriter
from free2ds_common.launch.kfp_api.steps import step_names
from free2ds_common.launch.package import Parameter
from free2ds_common.schemas import SCORES, kmeans_schema
from tests.support.http_stub import Call, Reply
from tests.support.kfp_stub import KfpStub, read

# The order in which the steps of a run come; the loop's have a turn for each shard.
IN_LOOP = ("llava-attention", "mgm-attention")
WITH_MODELS = (*IN_LOOP, "bert-features")
STAGES = (
    *("resolve", "ingest", "reuse", "demand", "split", "split-2"),
    *(*WITH_MODELS, "cluster-scoring", "joint-selection"),
)
# Those that run in the image of another.
IMAGES = {"demand": "reuse", "split-2": "split"}
GPU_LABELS = {"nvidia.com/gpu.present": "true"}


def select(data_set: bytes) -> bytes:
    """What is selected of a data set, on every machine: each fifth record."""
    return json.dumps(json.loads(data_set)[::5]).encode()


class ActingBackend(KfpStub):
    """The backend.

    Attributes:
        root: URI of the folder for artifacts.
        flaws: Names of what is wrong with it.
    """

    def __init__(self, root: str, *flaws: str) -> None:
        super().__init__()
        self.root, self.flaws = root, set(flaws)
        self.page_size = 100
        self._cached: set[str] = set()
        self._seen: dict[str, int] = {}
        self._pods: dict[str, list[dict]] = {}
        self._lost: set[str] = set()
        namespace = "/api/v1/namespaces/kubeflow"
        self.route(f"GET {namespace}/pods", self._list_pods)
        self.route(f"DELETE {namespace}/pods/([^/]+)", self._delete_pod)
        self.route("GET /api/v1/nodes/gpu-node", lambda call: self._json({"metadata": {"labels": GPU_LABELS}}))
        self.route("GET /api/v1/nodes", lambda call: self._json({"items": []}))
        self.route("GET /apis/argoproj.io/.*", lambda call: self._json({"items": []}))
        launcher = {"data": {"defaultPipelineRoot": root}}
        self.route(f"GET {namespace}/configmaps/kfp-launcher", lambda call: self._json(launcher))

    def _create_run(self, call: Call) -> Reply:
        self.next_run("RUNNING", "RUNNING", "RUNNING", "SUCCEEDED")
        reply = super()._create_run(call)
        if reply.status == 200:
            self._act(self.runs[read_id(reply)])
        return reply

    def _act(self, run: api.V2beta1Run) -> None:
        """Decide all that a run does."""
        spec = self.versions[run.pipeline_version_reference.pipeline_version_id].pipeline_spec["pipeline_spec"]
        definitions = spec["root"]["inputDefinitions"]["parameters"]
        values = {name: Parameter.of(definition).default for name, definition in definitions.items()}
        values |= run.runtime_config.parameters
        data_set, problem = None, ""
        if missing := [uri for uri in (values["dataset_uri"], f"{values['bert_model']}/config.json") if not has(uri)]:
            problem = missing[0].removesuffix("/config.json")
        else:
            data_set = fsspec.open(values["dataset_uri"]).open().read()
        content = "" if "stale" in self.flaws else hashlib.sha256(data_set or b"").hexdigest()
        key = json.dumps([values, content], sort_keys=True)
        steps = dict.fromkeys(STAGES, "SUCCEEDED")
        if problem:
            steps = {"resolve": "FAILED"}
            self._coming[run.run_id] = ["FAILED"]
        elif key in self._cached and "forgetful" not in self.flaws:
            steps = dict.fromkeys(STAGES, "SKIPPED") | {"resolve": "SUCCEEDED"}
        self._cached.add(key)
        took = 30 if not problem else 150 if "slow" in self.flaws else 20
        run.finished_at = run.created_at + timedelta(seconds=took)
        count = len(json.loads(data_set or b"[]"))
        seen = self._seen.get(values["cache_uri"], 0) if "recounting" not in self.flaws else 0
        if values["cache_uri"]:
            self._seen[values["cache_uri"]] = count
        turns = int(values["num_shards"])
        titles = {name.key: name.title for name in step_names(spec)}
        details = []
        for stage, state in steps.items():
            for turn in range(turns if stage in IN_LOOP else 1):
                pod = f"{run.run_id}-{stage}-{turn}"
                details.append(
                    api.V2beta1PipelineTaskDetail(
                        task_id=pod,
                        display_name=titles[stage],
                        state=state,
                        pod_name=None if state == "SKIPPED" else pod,
                    )
                )
                if state != "SKIPPED":
                    self._pods.setdefault(run.run_id, []).append(self._pod(pod, stage, values, spec))
                if state == "FAILED" and "mute" not in self.flaws:
                    self.logs[run.run_id, pod] = f"\nerror: {problem}: there is nothing.\n\n"
        run.run_details = api.V2beta1RunDetails(task_details=details)
        if data_set is not None:
            self._leave(run, data_set, values, seen)

    def _leave(self, run: api.V2beta1Run, data_set: bytes, values: dict, seen: int) -> None:
        """Put the results into the store.

        Args:
            run: Whose.
            data_set: Its content.
            values: All parameters.
            seen: How many of the records an earlier run has scored.
        """
        run_id = run.run_id
        fs, root = fsspec.url_to_fs(f"{self.root}/free2ds/{run_id}")
        selected = select(data_set) + (b" " if "other bytes" in self.flaws else b"")
        count = len(json.loads(data_set))
        made_from = {stage: {"image": f"free2ds-{stage}:dev"} for stage in STAGES}
        made_from["ingest"]["sha256"] = "" if "orphaned" in self.flaws else hashlib.sha256(data_set).hexdigest()
        summary = {
            "counts": {"read": count, "written": count // 5},
            "run": {},
            "reuse": {model: {"reused": seen, "computed": count - seen} for model in ("llava", "mgm")},
            "parameters": values,
            "code_version": "1",
            "lineage": {
                "image": "free2ds-joint-selection:dev",
                "made_from": made_from,
                "outputs": {"selected": hashlib.sha256(selected).hexdigest()},
            },
        }
        files = {"selected": selected, "random": selected, "report": b"<html>", "summary": json.dumps(summary).encode()}
        fs.pipe({f"{root}/joint-selection/1/{name}": content for name, content in files.items()})
        fs.pipe(f"{root}/ingest/1/rejects", b"")
        with tempfile.TemporaryDirectory() as folder:
            for name, schema in (("scores", SCORES), ("baseline", kmeans_schema(2))):
                with DatasetWriter(Path(folder) / name, schema) as writer:
                    writer.write([])
                fs.put(f"{folder}/{name}", f"{root}/joint-selection/1/{name}", recursive=True)

    def _pod(self, name: str, stage: str, values: dict, spec: dict) -> dict:
        """What Kubernetes says of a step's pod."""
        gpu = stage in WITH_MODELS
        asked = spec["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]["resources"]
        count = "0" if "no GPU" in self.flaws else values["gpu_count"]
        limits = {values["gpu_type"]: count} if gpu else {}
        if "resourceMemoryLimit" in asked and "boundless" not in self.flaws:
            limits["memory"] = asked["resourceMemoryLimit"]
        requests = {"cpu": asked["resourceCpuRequest"], "memory": asked["resourceMemoryRequest"]}
        container = {
            "name": "main",
            "image": f"free2ds-{IMAGES.get(stage, stage)}:dev",
            "resources": {"requests": requests, "limits": limits},
            "securityContext": {
                "runAsUser": 0 if "root" in self.flaws else 10001,
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        return {
            "metadata": {"name": name},
            "spec": {
                "containers": [{"name": "wait", "image": "argoexec:4"}, container],
                "nodeName": "gpu-node",
                "nodeSelector": {} if not gpu or "anywhere" in self.flaws else values["gpu_node_selector"],
                "tolerations": values["gpu_tolerations"] if gpu else [],
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            },
        }

    def _list_pods(self, call: Call) -> Reply:
        run_id = call.query["labelSelector"].removeprefix("pipeline/runid=")
        going_on = self.runs[run_id].state in ("PENDING", "RUNNING")
        phase = {"phase": "Running" if going_on else "Succeeded"}
        return self._json({"items": [{**pod, "status": phase} for pod in self._pods.get(run_id, [])]})

    def _delete_pod(self, call: Call, name: str) -> Reply:
        for run_id, pods in self._pods.items():
            for pod in pods:
                if pod["metadata"]["name"] == name:
                    pod["metadata"] = {"name": f"{name}-again"}
                    if "fragile" in self.flaws:
                        self._coming[run_id] = ["FAILED"]
        return self._json({})

    def _list_runs(self, call: Call) -> Reply:
        for schedule in list(self.schedules.values()):
            own = [run for run in self.runs.values() if run.recurring_run_id == schedule.recurring_run_id]
            if schedule.status == "ENABLED" and all(run.state == "SUCCEEDED" for run in own):
                self._fire(schedule)
        return super()._list_runs(call)

    def _fire(self, schedule: api.V2beta1RecurringRun) -> None:
        """Start a run of a schedule."""
        run_id = f"run-{len(self.runs) + 1}"
        run = self.add_run(
            run_id,
            "PENDING",
            "RUNNING",
            "SUCCEEDED",
            experiment_id=schedule.experiment_id,
            recurring_run_id=schedule.recurring_run_id,
            pipeline_version_reference=schedule.pipeline_version_reference,
            runtime_config=schedule.runtime_config,
        )
        self._act(run)

    def _delete_schedule(self, call: Call, key: str) -> Reply:
        return self._json({}) if "sticky" in self.flaws else super()._delete_schedule(call, key)


def read_id(reply: Reply) -> str:
    """The id of the run in an answer."""
    return read(reply.body, "V2beta1Run").run_id


def has(uri: str) -> bool:
    """Whether a file is in the store."""
    fs, path = fsspec.url_to_fs(uri)
    return bool(fs.exists(path))

"""The REST API of Kubeflow Pipelines (v2beta1) over HTTP, its bodies read and written by the real client's own models.

It keeps what it is told in memory. As the backend does, it refuses fields that a model does not have, and a deleted
schedule takes its running run along (`ghosts`).
"""

import email
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import kfp_server_api as api
import yaml

from tests.support.http_stub import Call, HttpStub, Reply

V2 = "/apis/v2beta1"
# In C where there is one: ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MODELS = api.ApiClient()
_BEGAN = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
_FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


def written(model) -> dict:
    """A model of the client as the JSON that travels."""
    return _MODELS.sanitize_for_serialization(model)


def read(body: bytes, model: str):
    """A body as a model of the client.

    Raises:
        ValueError: It has a field that the model does not have, as the backend's parser would say.
    """
    given = json.loads(body)
    unknown = set(given) - set(getattr(api, model).attribute_map.values())
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    return _MODELS.deserialize(SimpleNamespace(data=json.dumps(given)), model)


class KfpStub(HttpStub):
    """A backend.

    Attributes:
        experiments: By id, as all that follow.
        pipelines: V2beta1Pipeline.
        versions: V2beta1PipelineVersion.
        runs: V2beta1Run.
        schedules: V2beta1RecurringRun.
        logs: What pods printed, by run id and pod.
        ghosts: Runs whose workflow went with their schedule.
        multi_user: Of the health check.
        token: That a request has to bear; empty for none.
        page_size: Entries of a page, whatever the client asks for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.experiments, self.pipelines, self.versions, self.runs, self.schedules = {}, {}, {}, {}, {}
        self.logs: dict[tuple[str, str], str] = {}
        self.ghosts: list[str] = []
        self.multi_user, self.token, self.page_size = False, "", 2
        self._made = 0
        self._coming: dict[str, list[str]] = {}
        self.route(f"GET {V2}/healthz", lambda call: self._json({"multi_user": self.multi_user}))
        self.route(f"GET {V2}/experiments", self._list("experiments", self.experiments))
        self.route(f"POST {V2}/experiments", self._create_experiment)
        self.route(f"GET {V2}/pipelines", self._list("pipelines", self.pipelines))
        self.route(f"POST {V2}/pipelines", self._create_pipeline)
        self.route(f"POST {V2}/pipelines/upload_version", self._upload_version)
        self.route(f"GET {V2}/pipelines/([^/]+)/versions", self._list_versions)
        self.route(f"GET {V2}/pipelines/([^/]+)/versions/([^/]+)", lambda call, _, key: self._get(self.versions, key))
        self.route(f"GET {V2}/runs", self._list_runs)
        self.route(f"POST {V2}/runs", self._create_run)
        self.route(f"GET {V2}/runs/([^/:]+)", self._get_run)
        self.route(f"POST {V2}/runs/([^/:]+):terminate", self._terminate)
        self.route(f"GET {V2}/recurringruns", self._list("recurringRuns", self.schedules))
        self.route(f"POST {V2}/recurringruns", self._create_schedule)
        self.route(f"POST {V2}/recurringruns/([^/:]+):(enable|disable)", self._switch)
        self.route(f"DELETE {V2}/recurringruns/([^/:]+)", self._delete_schedule)
        self.route("GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", self._log)

    def answer(self, call: Call) -> Reply:
        """See `HttpStub.answer`; refuses who does not bear the token."""
        if self.token and call.headers.get("authorization") != f"Bearer {self.token}":
            self.calls.append(call)
            return Reply(401, b'{"message": "Request not authenticated"}')
        try:
            return super().answer(call)
        except ValueError as error:
            return self._json({"code": 3, "message": str(error)}, 400)

    def add_run(self, run_id: str, *states: str, **fields) -> api.V2beta1Run:
        """Put a run there; every look at it takes the next state, and the last one stays."""
        first, *coming = states
        self._coming[run_id] = coming
        fields.setdefault("display_name", f"data {run_id}")
        fields.setdefault("experiment_id", self.add_experiment("free2ds"))
        fields.setdefault("created_at", self._now())
        self.runs[run_id] = api.V2beta1Run(run_id=run_id, state=first, **fields)
        return self.runs[run_id]

    def add_experiment(self, name: str) -> str:
        """Put an experiment there; returns its id."""
        self.experiments[f"id-of-{name}"] = api.V2beta1Experiment(experiment_id=f"id-of-{name}", display_name=name)
        return f"id-of-{name}"

    def add_schedule(self, schedule_id: str, name: str, status: str = "ENABLED") -> None:
        """Put a schedule there."""
        self.schedules[schedule_id] = api.V2beta1RecurringRun(
            recurring_run_id=schedule_id,
            display_name=name,
            experiment_id=self.add_experiment("free2ds"),
            status=status,
            created_at=self._now(),
            max_concurrency="1",
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron="0 0 3 * * 1")),
        )

    def _now(self) -> datetime:
        self._made += 1
        return _BEGAN + timedelta(minutes=self._made)

    def _json(self, content, status: int = 200) -> Reply:
        return Reply(status, json.dumps(content).encode())

    def _get(self, where, key: str) -> Reply:
        if key not in where:
            return self._json({"code": 5, "message": f"{key} not found", "details": []}, 404)
        return self._json(written(where[key]))

    def _list(self, field: str, where):
        return lambda call: self._page(field, list(where.values()), call)

    def _page(self, field: str, entries, call: Call) -> Reply:
        if text := call.query.get("filter"):
            (predicate,) = json.loads(text)["predicates"]
            assert predicate.keys() == {"operation", "key", "stringValue"}
            assert predicate["operation"] == "EQUALS"
            entries = [entry for entry in entries if getattr(entry, predicate["key"]) == predicate["stringValue"]]
        if experiment := call.query.get("experiment_id"):
            entries = [entry for entry in entries if entry.experiment_id == experiment]
        if call.query.get("sort_by") == "created_at desc":
            entries = sorted(entries, key=lambda entry: entry.created_at, reverse=True)
        start = int(call.query.get("page_token") or 0)
        end = start + self.page_size
        # As the API does: no field where there is nothing.
        content = {field: [written(entry) for entry in entries[start:end]]} if entries[start:end] else {}
        return self._json(content | ({"next_page_token": str(end)} if end < len(entries) else {}))

    def _create_experiment(self, call: Call) -> Reply:
        experiment = read(call.body, "V2beta1Experiment")
        return self._get(self.experiments, self.add_experiment(experiment.display_name))

    def _create_pipeline(self, call: Call) -> Reply:
        pipeline = read(call.body, "V2beta1Pipeline")
        if any(one.display_name == pipeline.display_name for one in self.pipelines.values()):
            return self._json({"code": 6, "message": f"{pipeline.display_name} already exists"}, 409)
        pipeline.pipeline_id = f"pipeline-{len(self.pipelines) + 1}"
        self.pipelines[pipeline.pipeline_id] = pipeline
        return self._get(self.pipelines, pipeline.pipeline_id)

    def _upload_version(self, call: Call) -> Reply:
        header = f"Content-Type: {call.headers['content-type']}\r\n\r\n".encode()
        (file,) = email.message_from_bytes(header + call.body).get_payload()
        assert file.get_param("name", header="content-disposition") == "uploadfile"
        spec, *platform = yaml.load_all(file.get_payload(decode=True), LOADER)
        version = api.V2beta1PipelineVersion(
            pipeline_id=call.query["pipelineid"],
            pipeline_version_id=f"version-{len(self.versions) + 1}",
            display_name=call.query["name"],
            name=call.query["name"],
            pipeline_spec={"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec,
            created_at=self._now(),
        )
        if any(one.display_name == version.display_name for one in self.versions.values()):
            return self._json({"code": 6, "message": f"{version.display_name} already exists"}, 409)
        self.versions[version.pipeline_version_id] = version
        return self._get(self.versions, version.pipeline_version_id)

    def _list_versions(self, call: Call, pipeline_id: str) -> Reply:
        found = [version for version in self.versions.values() if version.pipeline_id == pipeline_id]
        return self._page("pipeline_versions", found, call)

    def _create_run(self, call: Call) -> Reply:
        run = read(call.body, "V2beta1Run")
        run_id = f"run-{len(self.runs) + 1}"
        reference, config = run.pipeline_version_reference, run.runtime_config
        if run.experiment_id not in self.experiments or reference.pipeline_version_id not in self.versions:
            return self._json({"code": 5, "message": "no such experiment or version"}, 404)
        self.add_run(
            run_id,
            "PENDING",
            *self._coming.pop("next", ["RUNNING", "SUCCEEDED"]),
            display_name=run.display_name,
            experiment_id=run.experiment_id,
            pipeline_version_reference=reference,
            runtime_config=config,
        )
        return self._get(self.runs, run_id)

    def next_run(self, *states: str) -> None:
        """Let the next run that is created go through these states after PENDING."""
        self._coming["next"] = list(states)

    def _look(self, run: api.V2beta1Run) -> api.V2beta1Run:
        if coming := self._coming[run.run_id]:
            run.state = coming.pop(0)
        return run

    def _get_run(self, call: Call, run_id: str) -> Reply:
        if run_id in self.runs:
            self._look(self.runs[run_id])
        return self._get(self.runs, run_id)

    def _list_runs(self, call: Call) -> Reply:
        shown = []
        for run in self.runs.values():
            whole = written(self._look(run))
            # The API's lists leave the tasks out.
            shown.append(_MODELS.deserialize(SimpleNamespace(data=json.dumps(whole)), "V2beta1Run"))
            shown[-1].run_details = None
        return self._page("runs", shown, call)

    def _terminate(self, call: Call, run_id: str) -> Reply:
        # A run that was terminated ends as failed, in a moment.
        self._coming[run_id] = ["CANCELING", "FAILED"]
        return self._json({})

    def _create_schedule(self, call: Call) -> Reply:
        schedule = read(call.body, "V2beta1RecurringRun")
        schedule.recurring_run_id = f"schedule-{len(self.schedules) + 1}"
        schedule.status = "ENABLED" if schedule.mode == "ENABLE" else "DISABLED"
        schedule.created_at = self._now()
        self.schedules[schedule.recurring_run_id] = schedule
        return self._get(self.schedules, schedule.recurring_run_id)

    def _switch(self, call: Call, key: str, verb: str) -> Reply:
        if key not in self.schedules:
            return self._get(self.schedules, key)
        self.schedules[key].status = f"{verb.upper()}D"
        return self._json({})

    def _delete_schedule(self, call: Call, key: str) -> Reply:
        if key not in self.schedules:
            return self._get(self.schedules, key)
        going_on = [run for run in self.runs.values() if run.recurring_run_id == key and run.state not in _FINISHED]
        self.ghosts += [run.run_id for run in going_on]
        del self.schedules[key]
        return self._json({})

    def _log(self, call: Call, run_id: str, pod: str) -> Reply:
        text = self.logs.get((run_id, pod))
        return Reply(404, b"pod not found", "text/plain") if text is None else Reply(200, text.encode(), "text/plain")

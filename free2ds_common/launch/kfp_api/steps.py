"""The steps of a run, out of the many nodes that the backend reports for it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from typing import Any

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

# Of tasks and runs alike.
FAILED, SUCCEEDED, RUNNING, SKIPPED = "FAILED", "SUCCEEDED", "RUNNING", "SKIPPED"
FINISHED = frozenset({SUCCEEDED, FAILED, SKIPPED, "CANCELED", "ERROR"})

_DRIVER = "-driver"
# What Argo adds to the name of a try.
_TRY = re.compile(r"\(\d+\)$")
# iteration-3, or Argo's own (3:value).
_ITERATION = re.compile(r"iteration-?(\d+)|\((\d+):")


@dataclass(frozen=True)
class StepName:
    """What a step is called.

    Attributes:
        key: In the spec.
        title: For people, which may be the same. The launcher names folders by it, and the metadata store tasks.
    """

    key: str
    title: str


@dataclass(frozen=True)
class Step:
    """One step, or one of a step's turns in a loop.

    Attributes:
        name: Its name.
        iteration: Number of the turn in its loop, from 0; empty outside of loops.
        state: As the API calls it; empty where it says none.
        pods: Names of the pods that ran it, the last try at the end.
        error: What the API says of a failure; usually nothing.
        started: When it began.
        ended: When it ended.
    """

    name: StepName
    iteration: str
    state: str
    pods: tuple[str, ...]
    error: str
    started: datetime | None
    ended: datetime | None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name.title} (turn {int(self.iteration) + 1})" if self.iteration else self.name.title


def step_names(spec: Mapping[str, Any]) -> list[StepName]:
    """The names of all steps that run in a pod, loops' and nested pipelines' too, none before what it waits for."""

    def walk(dag: Mapping[str, Any]) -> Iterator[StepName]:
        waits_for = {name: task.get("dependentTasks", []) for name, task in dag["tasks"].items()}
        for name in TopologicalSorter(waits_for).static_order():
            component = spec["components"][dag["tasks"][name]["componentRef"]["name"]]
            title = dag["tasks"][name].get("taskInfo", {}).get("name", name)
            if "dag" in component:
                yield from walk(component["dag"])
            elif "container" in spec["deploymentSpec"]["executors"][component["executorLabel"]]:
                yield StepName(name, title)

    return list(dict.fromkeys(walk(spec["root"]["dag"])))


def steps_of(run: V2beta1Run, names: Iterable[StepName]) -> list[Step]:
    """The steps of a run that have begun.

    Args:
        run: V2beta1Run.
        names: Of the steps (`step_names`).
    """
    known = {label: name for name in names for label in (name.title, name.key)}
    tree = _Tree(list((run.run_details.task_details if run.run_details else None) or []))
    steps = []
    for node in tree.nodes:
        label = _TRY.sub("", node.display_name or "")
        base = label.removesuffix(_DRIVER)
        # A driver that fails never lets its step begin.
        if base not in known or (label != base and node.state != FAILED):
            continue
        below = tree.below(node)
        steps.append(
            Step(
                name=known[base],
                iteration=tree.iteration(node),
                state=node.state or "",
                pods=tuple(dict.fromkeys(_pods(below))),
                error=next(_errors(below), ""),
                started=node.start_time,
                ended=node.end_time,
            )
        )
    return steps


def iteration_in(name: str) -> str:
    """The number of a loop's turn in a node's name; empty if there is none."""
    found = _ITERATION.search(name)
    return found[1] or found[2] if found else ""


class _Tree:
    """The nodes of a run; the API tells parents from both sides, and not always from both."""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes
        self._by_id = {node.task_id: node for node in nodes}
        self._parents: dict[str, str] = {}
        for node in nodes:
            if node.parent_task_id:
                self._parents[node.task_id] = node.parent_task_id
            for child in node.child_tasks or []:
                if child.task_id:
                    self._parents.setdefault(child.task_id, node.task_id)
        self._children: dict[str, list[Any]] = {}
        for node in nodes:
            if parent := self._parents.get(node.task_id):
                self._children.setdefault(parent, []).append(node)

    def below(self, node: V2beta1PipelineTaskDetail) -> list[Any]:
        """A node and all below it."""
        found: dict[str, Any] = {}
        waiting = [node]
        while waiting:
            next_one = waiting.pop(0)
            if next_one.task_id not in found:
                found[next_one.task_id] = next_one
                waiting += self._children.get(next_one.task_id, [])
        return list(found.values())

    def iteration(self, node: V2beta1PipelineTaskDetail) -> str:
        """The number of the turn that a node belongs to; empty outside of loops."""
        seen = {node.task_id}
        task_id = self._parents.get(node.task_id, "")
        while task_id and task_id not in seen:
            seen.add(task_id)
            above = self._by_id.get(task_id)
            if above is not None and (turn := iteration_in(above.display_name or "")):
                return turn
            task_id = self._parents.get(task_id, "")
        return ""


def _pods(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        if node.pod_name:
            yield node.pod_name
        for child in node.child_tasks or []:
            if child.pod_name:
                yield child.pod_name


def _errors(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        of_states = [status.error for status in node.state_history or [] if status.error]
        for error in (node.error, *reversed(of_states)):
            if error and error.message:
                yield str(error.message)

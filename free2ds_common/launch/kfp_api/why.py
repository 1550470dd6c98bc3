"""Why a run failed, or why it does not go on: the step's own sentence, wherever it can still be found."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kfp_server_api import V2beta1Run

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.artifacts import RunStore
from free2ds_common.launch.kfp_api.backend import Backend
from free2ds_common.launch.kfp_api.kube import Kube, Note, said_by
from free2ds_common.launch.kfp_api.runs import is_finished
from free2ds_common.launch.kfp_api.steps import FAILED, Step, step_names, steps_of
from free2ds_common.launch.kfp_api.versions import spec_of
from free2ds_common.redact import redacted
from free2ds_common.retry import StoreError

logger = logging.getLogger(__name__)

# As a stage prints it, and as a traceback ends; a log may have times in front.
_SENTENCE = re.compile(r"(?:^|\s)error: (?P<sentence>\S.*)$")
_EXCEPTION = re.compile(r"(?:^|\s)(?P<exception>[\w.]+(?:Error|Exception|Interrupt|Exit)(?:: .*)?)$")
# Of the launcher, after the stage.
_NO_SENTENCE = re.compile(r"failed to execute component|exit status|RuntimeError: .*executor")


@dataclass(frozen=True)
class Finding:
    """What is wrong with one step.

    Attributes:
        step: Its title.
        sentence: What it said, or what is said of it.
    """

    step: str
    sentence: str


@dataclass(frozen=True)
class Sources:
    """Where sentences are looked for.

    Attributes:
        backend: Its API knows errors and logs.
        kube: Knows what pods wait for and what they left; None without a kubeconfig.
        pipeline_root: See `RunStore.of`.
    """

    backend: Backend
    kube: Kube | None = None
    pipeline_root: str = ""

    def findings(self, run: V2beta1Run) -> list[Finding]:
        """What is wrong with a run; nothing for one that is well.

        Args:
            run: V2beta1Run.

        Raises:
            StageError: The backend does not answer.
        """
        if run.state == FAILED:
            return _grouped(self._failures(run))
        if is_finished(run) or self.kube is None:
            return []
        return _grouped(Finding(note.step, note.message) for note in self.kube.notes(run.run_id) if note.waiting)

    def _failures(self, run: V2beta1Run) -> Iterator[Finding]:
        spec = spec_of(self.backend, run)
        notes = self.kube.notes(run.run_id) if self.kube else []
        failed = [step for step in steps_of(run, step_names(spec)) if step.state == FAILED]
        for step in failed:
            yield Finding(step.title, self._sentence(run, spec, step, notes) or _unsaid(step))
        if failed:
            return
        said = [Finding(note.step, note.message) for note in notes]
        if run.error and run.error.message:
            said.append(Finding("the run", run.error.message))
        yield from said or [Finding("the run", "it failed before any step said why; the UI's events may know more")]

    def _sentence(self, run: V2beta1Run, spec: Mapping[str, Any], step: Step, notes: Iterable[Note]) -> str:
        """What a failed step said, from the first place that has it."""
        if said := said_by(step.error):
            return sentence_in(said) or said
        of_step = [
            note.message for note in notes if note.pod in step.pods or (not note.pod and note.step == step.title)
        ]
        for message in of_step:
            if sentence := sentence_in(message):
                return sentence
        for text in self._logs(run, spec, step):
            if sentence := sentence_in(text):
                return sentence
        return of_step[0] if of_step else ""

    def _logs(self, run: V2beta1Run, spec: Mapping[str, Any], step: Step) -> Iterator[str]:
        """What a step printed: its pods' logs, or where they are gone the archived ones."""
        for pod in reversed(step.pods):
            path = f"/apis/v1alpha1/runs/{run.run_id}/nodes/{pod}/log"
            yield from _unless_refused(partial(self.backend.text, "the log of a step", path))
        # In a loop nobody can tell which turn an execution's folder belongs to: any turn's last word is one of them.
        store = RunStore.of(run, spec, self.pipeline_root, self.kube)
        yield from _unless_refused(lambda: "\n".join(reversed(list(store.logs(step.name)))))


def sentence_in(log: str) -> str:
    """A stage's last sentence in what it printed, else the exception that it ended with; empty if there is neither."""
    exception = ""
    for line in reversed(log.splitlines()):
        if found := _SENTENCE.search(line):
            return redacted(found["sentence"].strip())
        if not exception and (crash := _EXCEPTION.search(line)) and not _NO_SENTENCE.search(line):
            exception = redacted(crash["exception"].strip())
    return exception


def _unless_refused(read: Callable[[], str]) -> Iterator[str]:
    """A text, or nothing where it cannot be had: there are other places."""
    try:
        yield read()
    except (StageError, StoreError, FileNotFoundError) as error:
        logger.debug("%s", error)


def _unsaid(step: Step) -> str:
    """Of a step that left no word anywhere."""
    pod = f"; kubectl logs {step.pods[-1]} -c main may still show more" if step.pods else ""
    return f"it ended without a sentence: killed, or its log cannot be read from here{pod}"


def _grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with those of one sentence put together: what one shard says, most others say too."""
    steps: dict[str, list[str]] = {}
    for finding in findings:
        steps.setdefault(finding.sentence, []).append(finding.step)
    return [Finding(_listed(dict.fromkeys(names)), sentence) for sentence, names in steps.items()]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every) if len(every) <= 3 else f"{every[0]} and {len(every) - 1} more"


def lines(run: V2beta1Run, findings: Iterable[Finding], link: str) -> list[str]:
    """What is printed of a run: its state and the findings.

    Args:
        run: V2beta1Run.
        findings: What is wrong with it.
        link: Its page in the UI.
    """
    shown = [f"run {run.run_id} ({run.display_name}): {run.state}"]
    shown += [f"  {finding.step}: {finding.sentence}" for finding in findings]
    return [*shown, f"  {link}"]

"""The LLMDeployments in manifest files, judged as `shoal validate` judges them.

Except for what only a cluster could not do: that is a note here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_api.acceptance import rejections
from shoal_api.manifests import Document, UnreadableManifest, read_manifests
from shoal_api.problems import Problem
from shoal_api.spec import LLMDeployment
from shoal_api.status import Reason
from shoal_api.validate import concerns_us, invalidities
from shoal_operator.local.errors import CannotRun

CLUSTER_ONLY: frozenset[Reason] = frozenset({"ModelNotMounted", "InvalidPodTemplate", "InvalidResources"})


@dataclass(frozen=True, slots=True)
class Manifests:
    """What the files hold. `notes`: what of it is not run here, and why."""

    deployments: tuple[LLMDeployment, ...]
    notes: tuple[str, ...]


def read_deployments(files: Sequence[str]) -> Manifests:
    """Every LLMDeployment of `files` with at least one replica.

    Raises CannotRun with every problem of every file, and when there is no LLMDeployment at all.
    """
    try:
        documents = read_manifests(files)
    except UnreadableManifest as error:
        raise CannotRun(str(error)) from None
    found: list[LLMDeployment] = []
    problems: list[str] = []
    notes: list[str] = []
    for document in documents:
        if not concerns_us(document.value):
            kind = document.value["kind"]
            notes.append(f"{document.file}:{document.line}: {kind}: `shoal up` runs LLMDeployments only")
        elif invalid := invalidities(document.value):
            problems += [_at(document, problem) for problem in invalid]
        else:
            found.append(LLMDeployment.parse(document.value))
            for rejection in rejections(found[-1]):
                there = notes if rejection.reason in CLUSTER_ONLY else problems
                there.append(f"{_at(document, rejection.problem)} ({rejection.reason})")
    if problems:
        raise CannotRun("the manifests are not valid\n" + "\n".join(problems))
    if not found:
        raise CannotRun(f"there is no LLMDeployment in {', '.join(files)}")
    notes += [f"{each.name}: {_why_idle(each)}" for each in found if each.desired_replicas == 0]
    return Manifests(tuple(each for each in found if each.desired_replicas > 0), tuple(notes))


def _at(document: Document, problem: Problem) -> str:
    return f"{document.file}:{document.line_of(problem.place)}: {problem}"


def _why_idle(deployment: LLMDeployment) -> str:
    return "it is suspended" if deployment.spec.suspend else "it has no replica"

"""What KubeRay says about a RayJob, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amlp.cluster.rayjob.errors import (
    DeadlineExceeded,
    HeadLost,
    JobFailed,
    JobInvalid,
    JobStopped,
    JobSuspended,
    NeverStarted,
    RayJobError,
)

# Containers of the head that print the job's log: our template's, and KubeRay's in SidecarMode.
JOB_LOG, SUBMITTER = "job-log", "ray-job-submitter"


def outcome(status: Mapping[str, Any], *, queued: bool) -> tuple[str, type[RayJobError] | None]:
    """Say what a RayJob's status means.

    Args:
        status: as KubeRay writes it; empty before KubeRay has seen the job.
        queued: whether Kueue decides when it runs.

    Returns:
        `succeeded`; `failed` and the error to raise; `running`; `queued`, where Kueue holds the job back; or `waiting`,
        for all else before the job's first step.
    """
    deployment, job = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    reason = status.get("reason") or ""
    if deployment == "Complete":
        # A job can be over for Ray and not for KubeRay, so Ray's word counts only once KubeRay agrees.
        ended = {"SUCCEEDED": ("succeeded", None), "STOPPED": ("failed", JobStopped)}
        return ended.get(job, ("failed", JobFailed))
    if deployment == "ValidationFailed" or (deployment == "Failed" and reason == "ValidationFailed"):
        return "failed", JobInvalid
    if deployment == "Failed":
        by_reason: dict[str, type[RayJobError]] = {
            "DeadlineExceeded": DeadlineExceeded,
            "PreRunningDeadlineExceeded": NeverStarted,
            "JobStatusCheckTimeoutExceeded": HeadLost,
        }
        return "failed", by_reason.get(reason, JobStopped if job == "STOPPED" else JobFailed)
    if deployment in ("Suspending", "Suspended"):
        return ("queued", None) if queued else ("failed", JobSuspended)
    # KubeRay says Running from the submission on; the job itself may still wait for a place.
    if deployment == "Running" and job not in ("", "PENDING"):
        return "running", None
    return "waiting", None


def log_container(job: Mapping[str, Any]) -> str:
    """Return the head's container that prints the job's log, or Ray's own where none does."""
    names = [c["name"] for c in job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]]
    if JOB_LOG in names:
        return JOB_LOG
    return SUBMITTER if job["spec"].get("submissionMode") == "SidecarMode" else str(names[0])


def describe(status: Mapping[str, Any]) -> str:
    """One line: both statuses, why, and how many workers are there."""
    parts = [status.get("jobDeploymentStatus") or "not yet seen by KubeRay", status.get("jobStatus") or ""]
    cluster = status.get("rayClusterStatus") or {}
    if "desiredWorkerReplicas" in cluster:
        parts.append(f"{cluster.get('readyWorkerReplicas', 0)} of {cluster['desiredWorkerReplicas']} workers ready")
    if failed := status.get("failed"):
        parts.append(f"{failed} {'try' if failed == 1 else 'tries'} failed")
    # KubeRay appends the job's log to the message, from its second line on.
    message = (status.get("message") or "").partition("\n")[0]
    parts += [status.get("reason") or "", " ".join(message.split())[:300], cluster.get("reason") or ""]
    return ", ".join(part for part in parts if part)

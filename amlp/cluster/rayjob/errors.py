"""How a RayJob can end other than well: one class per outcome, each with an exit code."""

from __future__ import annotations


class RayJobError(Exception):
    """The RayJob did not succeed; `exit_code` tells how, for those who read nothing else."""

    exit_code = 1


class JobFailed(RayJobError):
    """The training ended with an error; its log tells which."""

    exit_code = 10


class JobStopped(RayJobError):
    """Somebody stopped the Ray job."""

    exit_code = 11


class JobInvalid(RayJobError):
    """Kubernetes or KubeRay refused the RayJob as it is."""

    exit_code = 12


class JobSuspended(RayJobError):
    """Somebody suspended the RayJob, and no queue will resume it."""

    exit_code = 13


class NeverStarted(RayJobError):
    """The job did not run within the pre-running deadline: no GPU came, or an image does not load."""

    exit_code = 14


class HeadLost(RayJobError):
    """The RayJob says Running, and its head pod is gone or does not answer."""

    exit_code = 15


class JobDeleted(RayJobError):
    """Somebody deleted the RayJob while it was watched."""

    exit_code = 16


class DeadlineExceeded(RayJobError):
    """The job ran for longer than it may."""

    exit_code = 17


class ApiUnavailable(RayJobError):
    """The Kubernetes API did not answer, or only with errors, for longer than is borne."""

    exit_code = 18


class NotAllowed(RayJobError):
    """The service account lacks a right."""

    exit_code = 19


class Interrupted(RayJobError):
    """This process was asked to end."""

    exit_code = 143

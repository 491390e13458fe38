"""How a RayJob can end other than well: one class per outcome."""

from __future__ import annotations


class RayJobError(Exception):
    """The RayJob did not succeed; the class says how."""


class JobFailed(RayJobError):
    """The training ended with an error; its log says which."""


class JobStopped(RayJobError):
    """Somebody stopped the Ray job."""


class JobInvalid(RayJobError):
    """Kubernetes or KubeRay refused the RayJob as it is."""


class JobSuspended(RayJobError):
    """Somebody suspended the RayJob, and no queue will resume it."""


class NeverStarted(RayJobError):
    """The job did not run within the pre-running deadline: no GPU came, or an image does not load."""


class HeadLost(RayJobError):
    """The RayJob says Running, and its head pod is gone or does not answer."""


class JobDeleted(RayJobError):
    """Somebody deleted the RayJob while it was watched."""


class DeadlineExceeded(RayJobError):
    """The job ran for longer than it may."""


class ApiUnavailable(RayJobError):
    """The Kubernetes API did not answer, or only with errors, for longer than is allowed."""


class NotAllowed(RayJobError):
    """The service account lacks a right."""


class Interrupted(RayJobError):
    """This process was asked to end."""

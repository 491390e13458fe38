"""RayJobs: what to run, how it ends, and the launcher that submits, watches and deletes one."""

from __future__ import annotations

from amlp.cluster.rayjob.api import Clock, connect
from amlp.cluster.rayjob.errors import (
    ApiUnavailable,
    DeadlineExceeded,
    HeadLost,
    Interrupted,
    JobDeleted,
    JobFailed,
    JobInvalid,
    JobStopped,
    JobSuspended,
    NeverStarted,
    NotAllowed,
    RayJobError,
)
from amlp.cluster.rayjob.launcher import LOOK, Launcher, submit
from amlp.cluster.rayjob.request import (
    GROUP,
    OWNER_LABEL,
    PLURAL,
    QUEUE_LABEL,
    RUN_LABEL,
    TASK_LABEL,
    VERSION,
    Deadlines,
    JobRequest,
    build,
    job_name,
    label_value,
    load_template,
)
from amlp.cluster.rayjob.status import log_container, outcome

__all__ = [
    "GROUP",
    "LOOK",
    "OWNER_LABEL",
    "PLURAL",
    "QUEUE_LABEL",
    "RUN_LABEL",
    "TASK_LABEL",
    "VERSION",
    "ApiUnavailable",
    "Clock",
    "DeadlineExceeded",
    "Deadlines",
    "HeadLost",
    "Interrupted",
    "JobDeleted",
    "JobFailed",
    "JobInvalid",
    "JobRequest",
    "JobStopped",
    "JobSuspended",
    "Launcher",
    "NeverStarted",
    "NotAllowed",
    "RayJobError",
    "build",
    "connect",
    "job_name",
    "label_value",
    "load_template",
    "log_container",
    "outcome",
    "submit",
]

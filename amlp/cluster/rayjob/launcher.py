"""Submit a RayJob, watch it to its end, and delete it whatever happens.

The service account needs create, get and delete on rayjobs.ray.io and get on pods/log, nothing else. The head is the
only pod that a RayJob's status names, and finding a submitter's own pod would need the right to list pods; so the job's
log is that of a container of the head: `job-log` of our template, or KubeRay's submitter in SidecarMode.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amlp.cluster.rayjob.api import Clock, answer_of, connect, told_to_end
from amlp.cluster.rayjob.errors import (
    ApiUnavailable,
    DeadlineExceeded,
    HeadLost,
    Interrupted,
    JobDeleted,
    JobInvalid,
    NeverStarted,
    NotAllowed,
    RayJobError,
)
from amlp.cluster.rayjob.log import JobLog
from amlp.cluster.rayjob.request import GROUP, PLURAL, QUEUE_LABEL, VERSION, JobRequest, build, load_template
from amlp.cluster.rayjob.status import describe, log_container, outcome
from amlp.errors import UserError

logger = logging.getLogger(__name__)

# Seconds between two looks at a RayJob. The connection stays open from one look to the next, so that a deletion at the
# last moment does not wait for a new one.
LOOK = 10.0


class Launcher:
    """Creates, watches and deletes one RayJob.

    Args:
        api: a `kubernetes.client.ApiClient`.
        refused: returns the message of an error that the user caused, once the job recorded one; else nothing. KubeRay
            starts a job again whatever its exit code, so the launcher ends such a job.
    """

    def __init__(
        self,
        api: Any,
        request: JobRequest,
        job: Mapping[str, Any],
        *,
        refused: Callable[[], str] = str,
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        from kubernetes import client

        self.request, self.job, self.refused = request, job, refused
        self.clock = clock or Clock()
        self.random = random.Random(seed)
        self.objects = client.CustomObjectsApi(api)
        self.where = {"group": GROUP, "version": VERSION, "namespace": request.namespace, "plural": PLURAL}
        self.ours = False
        # Its own connections: a long log must not be in the way of the deletion.
        core = client.CoreV1Api(client.ApiClient(api.configuration))
        self.log = JobLog(core, request, container=log_container(job), now=self.clock.now)

    def run(self) -> None:
        """Create the RayJob or continue with the one of an earlier launcher, and wait for its success.

        Raises:
            RayJobError: it ended otherwise; one class an outcome. The RayJob is deleted all the same.
            UserError: a RayJob of this name runs something else.
        """
        with told_to_end() as deaf:
            try:
                try:
                    self._create()
                    self._watch()
                    self._say("succeeded")
                finally:
                    # Nested, so that a SIGTERM in this very moment does not stop the deletion either.
                    deaf()
            finally:
                self._delete()

    def _say(self, text: str) -> None:
        logger.info(f"RayJob {self.request.name}: {text}")

    def _ended(self, text: str) -> str:
        """What an error says: how the job ended, and the last lines of its log."""
        return f"RayJob {self.request.name}: {text}{self.log.tail()}"

    def _request(self, verb: str, call: Callable[[], Any], *, seconds: float, passing: tuple[int, ...] = ()) -> Any:
        """Call the API; wait and repeat while it is unavailable.

        Raises:
            ApiException: an answer in `passing`.
            RayJobError: any other refusal, or no answer for `seconds`.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        since, attempt = self.clock.now(), 0
        while True:
            try:
                return call()
            except ApiException as error:
                if error.status in passing:
                    raise
                if error.status in (401, 403):
                    answer = answer_of(error)
                    if "exceeded quota" in answer:
                        raise JobInvalid(
                            f"a quota of namespace {self.request.namespace} is full: {answer}\nEnd other RayJobs, "
                            "raise the ResourceQuota, or name a Kueue queue, where jobs wait."
                        ) from error
                    if self.clock.now() - since >= min(self.request.deadlines.forbidden, seconds):
                        raise NotAllowed(
                            f"Kubernetes answers {error.status} {error.reason}: {answer}\nThis service account must be "
                            f"allowed to `{verb}` {PLURAL}.{GROUP} in namespace {self.request.namespace}; see the "
                            "launcher's Role and RoleBinding."
                        ) from error
                elif error.status and error.status < 500 and error.status != 429:
                    raise JobInvalid(f"Kubernetes refuses to {verb} {self.request.name}: {answer_of(error)}") from error
                trouble = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                trouble = str(error)
            attempt += 1
            waited = self.clock.now() - since
            if waited >= seconds:
                raise ApiUnavailable(f"the Kubernetes API is unavailable for {waited:.0f} s: {trouble}")
            if attempt in (1, 5, 20):
                self._say(f"the Kubernetes API is unavailable, trying again: {trouble}")
            self._pause(attempt)

    def _pause(self, attempt: int, longest: float = 30.0) -> None:
        """Wait 1 s, then longer; with jitter, for many launchers wait for the same API server."""
        self.clock.sleep(min(longest, 1.5 ** min(attempt, 20)) * self.random.uniform(0.5, 1.0))

    def _create(self) -> None:
        from kubernetes.client import ApiException

        deadlines, attempt, since = self.request.deadlines, 0, self.clock.now()
        while True:
            # Before the call: asked to end in the middle of it, we can't know whether the RayJob exists.
            self.ours = True
            try:
                self._request(
                    "create",
                    lambda: self.objects.create_namespaced_custom_object(
                        **self.where, body=self.job, _request_timeout=deadlines.request
                    ),
                    seconds=deadlines.api_outage,
                    passing=(404, 409),
                )
                self._say(f"created in namespace {self.request.namespace}")
                return
            except ApiException as error:
                self.ours = False
                if error.status == 404:
                    raise JobInvalid(
                        f"no namespace {self.request.namespace}, or no rayjobs.ray.io in this cluster: is KubeRay "
                        f"installed? {answer_of(error)}"
                    ) from error
            except RayJobError as error:
                self.ours = isinstance(error, ApiUnavailable | Interrupted)
                raise
            found = self._get()
            if found and not found["metadata"].get("deletionTimestamp"):
                wanted, there = self.job["spec"]["entrypoint"], found["spec"].get("entrypoint")
                if there != wanted:
                    raise UserError(
                        f"RayJob {self.request.name} exists and runs `{there}`, not `{wanted}`; delete it or take "
                        "another run id."
                    )
                self.ours = True
                if self._is_of_this_pod(found):
                    self._say("exists already: continuing with it")
                    return
                # Kubernetes deletes it with that pod, and the training resumes from its checkpoint.
                self._say("is that of an earlier try, whose pod is gone: making it anew")
                self._delete()
            if self.clock.now() - since >= deadlines.pre_running:
                raise NeverStarted(f"an earlier RayJob {self.request.name} is being deleted and does not go away")
            attempt += 1
            self._pause(attempt)

    def _is_of_this_pod(self, job: Mapping[str, Any]) -> bool:
        owners = {one.get("uid") for one in job["metadata"].get("ownerReferences") or [] if one.get("kind") == "Pod"}
        return not self.request.pod_uid or owners <= {self.request.pod_uid}

    def _get(self) -> dict[str, Any] | None:
        """Return the RayJob, or None when there is none."""
        from kubernetes.client import ApiException

        try:
            found: dict[str, Any] = self._request(
                "get",
                lambda: self.objects.get_namespaced_custom_object(
                    **self.where, name=self.request.name, _request_timeout=self.request.deadlines.request
                ),
                seconds=self.request.deadlines.api_outage,
                passing=(404,),
            )
        except ApiException:
            return None
        return found

    def _watch(self) -> None:
        deadlines = self.request.deadlines
        started = waiting = self.clock.now()
        headless: float | None = None
        said, unchanged = "", 0
        while True:
            found = self._get()
            if found is None:
                raise JobDeleted(self._ended("was deleted by somebody else while it was watched"))
            status = found.get("status") or {}
            text = describe(status)
            if text != said:
                self._say(text)
                unchanged = 0
            said = text
            # By its own label: the template may bring one, and a job that was there already has what it was made with.
            what, error = outcome(status, queued=QUEUE_LABEL in (found["metadata"].get("labels") or {}))
            head_there = self.log.follow(status)
            if what == "succeeded":
                return
            # KubeRay counts the tries that failed, and starts the next.
            if (error or status.get("failed")) and (message := self.refused()):
                raise UserError(message)
            if error:
                raise error(self._ended(text + (self.log.warnings(status) if error is NeverStarted else "")))
            now = self.clock.now()
            if what in ("running", "queued"):
                # A queue may be long; the time in it counts for the total alone.
                waiting = now
            elif now - waiting >= deadlines.pre_running:
                raise NeverStarted(
                    self._ended(
                        f"does not run after {now - waiting:.0f} s ({text}); no node with the GPUs asked for, an image "
                        f"that can't be pulled or a full quota are the usual reasons{self.log.warnings(status)}"
                    )
                )
            lost = what == "running" and (not head_there or bool(status.get("jobStatusCheckFailureStartTime")))
            headless = (headless if headless is not None else now) if lost else None
            if headless is not None and now - headless >= deadlines.head_lost:
                raise HeadLost(self._ended(f"says {text}, and its head is gone for {now - headless:.0f} s"))
            if now - started >= deadlines.total:
                raise DeadlineExceeded(self._ended(f"still {text} after {now - started:.0f} s"))
            unchanged += 1
            self._pause(unchanged, LOOK)

    def _delete(self) -> None:
        """Delete the RayJob; KubeRay deletes its cluster. A failure is reported and changes no outcome."""
        from kubernetes.client import ApiException

        if not self.ours:
            return
        try:
            self._request(
                "delete",
                lambda: self.objects.delete_namespaced_custom_object(
                    **self.where,
                    name=self.request.name,
                    propagation_policy="Background",
                    _request_timeout=self.request.deadlines.last_request,
                ),
                # Kubernetes kills this pod 30 s after it asked.
                seconds=20,
                passing=(404,),
            )
            self._say("deleted")
        except ApiException:
            self._say("is gone")
        except RayJobError as error:
            self._say(
                f"COULD NOT BE DELETED and may still hold GPUs: {error}\n"
                f"  kubectl -n {self.request.namespace} delete rayjob {self.request.name}"
            )


def submit(*, template: Path, request: JobRequest, host: str = "", refused: Callable[[], str] = str) -> None:
    """Run a RayJob to its end; see `Launcher`."""
    job = build(load_template(template), request)
    Launcher(connect(host), request, job, refused=refused).run()

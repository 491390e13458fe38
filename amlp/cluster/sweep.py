r"""Delete RayJobs whose task has ended: the second line behind the launcher, which Kubernetes may kill at any moment.

    python -m amlp.cluster.sweep --namespace amlp

A RayJob names the pod that launched it as its owner, and Kubernetes deletes it with that pod. But a pod that has ended
is kept for its log, for hours or days, and the RayJob with it. The service account needs list and delete on
rayjobs.ray.io and get on pods.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from amlp import logs
from amlp.cluster.rayjob import GROUP, OWNER_LABEL, PLURAL, VERSION, connect
from amlp.errors import UserError, is_transient

# By name: run as a command, this module is called __main__.
logger = logging.getLogger("amlp.cluster.sweep")

# Seconds between two looks.
PAUSE = 20.0
# Kubeflow's name for the container of a task; beside it, Argo's own may still be busy.
MAIN = "main"


def why_over(pod: Mapping[str, Any] | None, uid: str) -> str:
    """Say why the task of a launcher's pod is over; empty while it is not.

    Args:
        pod: as the Kubernetes API has it; None where there is none of this name.
        uid: that the launcher's pod has.
    """
    if pod is None or pod["metadata"].get("uid") != uid:
        return "its pod is gone"
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return f"its pod has {status['phase'].lower()}"
    for container in status.get("containerStatuses") or []:
        if container.get("name") == MAIN and (ended := (container.get("state") or {}).get("terminated")):
            return f"its container has ended with exit code {ended.get('exitCode')}"
    return ""


def sweep(api: Any, namespace: str) -> Iterator[tuple[str, Exception | None]]:
    """Delete the RayJobs of ended tasks. Other RayJobs stay, those without an owner too.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: to look in.

    Yields:
        A line for each that was deleted. Of what fails, the list of them too, a line and the error: the others don't
        wait for it.
    """
    from kubernetes import client

    objects, core = client.CustomObjectsApi(api), client.CoreV1Api(api)
    where = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL}
    try:
        found = objects.list_namespaced_custom_object(**where, label_selector=OWNER_LABEL, _request_timeout=30)
    except Exception as error:
        yield str(error), error
        return
    for job in found.get("items") or []:
        metadata = job["metadata"]
        owner = next((one for one in metadata.get("ownerReferences") or [] if one.get("kind") == "Pod"), None)
        if owner is None or metadata.get("deletionTimestamp"):
            continue
        name = metadata["name"]
        try:
            reason = why_over(_pod(core, owner["name"], namespace), owner["uid"])
            if not reason:
                continue
            # Another of the same name, that a new try has made since, is not meant.
            body = client.V1DeleteOptions(
                propagation_policy="Background", preconditions=client.V1Preconditions(uid=metadata["uid"])
            )
            objects.delete_namespaced_custom_object(**where, name=name, body=body, _request_timeout=30)
        except Exception as error:
            if not (isinstance(error, client.ApiException) and error.status in (404, 409)):
                yield f"RayJob {name}: {error}", error
        else:
            yield f"RayJob {name}: deleted, because {reason}", None


def _pod(core: Any, name: str, namespace: str) -> dict[str, Any] | None:
    from kubernetes.client import ApiException

    try:
        answer = core.read_namespaced_pod(name, namespace, _preload_content=False, _request_timeout=30)
    except ApiException as error:
        if error.status == 404:
            return None
        raise
    pod: dict[str, Any] = json.loads(answer.data)
    return pod


def main(argv: Sequence[str] | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run the command line: look again and again, or once; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m amlp.cluster.sweep", description="Delete RayJobs whose task has ended."
    )
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--once", action="store_true", help="look once and end")
    parser.add_argument("--host", default="", help="of the API server, without credentials (default: as kubectl)")
    args = parser.parse_args(argv)
    logs.configure()
    try:
        api = connect(args.host)
    except UserError as error:
        logger.error(f"amlp: {error}")
        return 2
    logger.info(f"Looking for RayJobs whose task has ended in namespace {args.namespace}")
    while True:
        failed = False
        for line, why in sweep(api, args.namespace):
            if why is None:
                logger.info(line)
                continue
            # A server that starts or is away: the next look may succeed. A missing right is no such thing, but it may
            # be granted, and to end here would only be to be started again.
            failed = True
            logger.error(f"{'This may pass' if is_transient(why) else 'Failed'}: {line}")
        if args.once:
            return int(failed)
        sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())

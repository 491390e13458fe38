"""`amlp-pipelines`: compile the training pipeline, run it on Kubeflow, now or by a schedule, and look how it goes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp import logs
from amlp.environment import COMMIT_VARIABLE, quiet
from amlp.errors import UserError, without_credentials
from pipelines.runs import ENDED, as_json, message_of, rows_of

if TYPE_CHECKING:
    from amlp.cluster.training import ClusterParams
    from amlp.params import RegisterParams
    from pipelines.resources import Resources

# By name: run as a command, this module is called __main__.
logger = logging.getLogger("pipelines.__main__")

# Where Kubeflow's API wants a token, it is read from here: a command line can be seen by others.
TOKEN_VARIABLE = "AMLP_KUBEFLOW_TOKEN"
TRAIN_IMAGE = os.environ.get("AMLP_TRAIN_IMAGE") or "amlp-train:0.1.0"
# Variables that name the images, and when each is needed.
_IMAGES = {"AMLP_STAGES_IMAGE": "", "AMLP_PIPELINE_IMAGE": "", "AMLP_TRAIN_IMAGE": "rayjob"}
# Seconds for which an API that does not answer is tolerated, while a run is watched.
OUTAGE = 300.0
# Seconds between two looks at a run.
PAUSE = 10.0
# That k8s/ fills, and whose Profile runs belong to.
NAMESPACE = "amlp"
# Exit code of `status` while the run has not ended.
RUNNING = 3


def _compile(args: argparse.Namespace) -> int:
    from pipelines.compile import write_pipeline

    if args.out.suffix != ".yaml":
        raise UserError(f"--out: {args.out} does not end in .yaml, and Kubeflow takes no other file")
    cluster, resources = _cluster(args), _resources(args)
    try:
        write_pipeline(args.out, cluster=cluster, resources=resources)
    except OSError as error:
        raise UserError(f"--out: {args.out}: can't be written: {error.strerror or error}") from error
    for name in _unnamed(args):
        print(f"{name} is not set: the tasks name an image of this release, which no registry has.", file=sys.stderr)
    print(f"Wrote {args.out}")
    return 0


def _unnamed(args: argparse.Namespace) -> list[str]:
    """The images that nobody named and that the pipeline needs."""
    return [name for name, only in _IMAGES.items() if not os.environ.get(name) and only in ("", args.launcher)]


def _cluster(args: argparse.Namespace) -> ClusterParams:
    from amlp.cluster.training import ClusterParams
    from amlp.params import parse_section

    resources = _resources(args)
    settings = {
        "launcher": args.launcher,
        "work": args.work,
        "image": TRAIN_IMAGE,
        "owner": args.owner,
        "queue": args.queue,
        "gpus": args.gpus,
        "cpu": args.cpu or resources.training.cpu,
        "memory": args.memory or resources.training.memory,
        "head": dict(resources.ray_head),
        "worker": {
            "cpu": args.cpu or resources.ray_worker.cpu,
            "memory": args.memory or resources.ray_worker.memory,
        },
        "node_selector": _pairs(args.node_selector),
        "tolerations": [_json(text) for text in args.toleration],
        "deadline_hours": resources.training.hours if args.deadline_hours is None else args.deadline_hours,
    }
    return parse_section(ClusterParams, settings, "the command line")


def _resources(args: argparse.Namespace) -> Resources:
    from pipelines.resources import load_resources

    return load_resources(args.resources)


def _arguments(args: argparse.Namespace, *, follow: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's arguments, and what `write_pipeline` fixes when it compiles."""
    from amlp.data.versions import resolve_version
    from amlp.params import load_params, parse_params
    from amlp.registry.lineage import code_version
    from pipelines.arguments import DataSource, pipeline_arguments, record_of
    from pipelines.runs import TASKS

    params = load_params(args.params)
    if args.workers is not None:
        values = params.model_dump(by_alias=True)
        for section in ("pretrain", "finetune"):
            values[section]["num_workers"] = args.workers
        params = parse_params(values, f"{args.params} with --workers {args.workers}")
    cluster = _cluster(args)
    if unnamed := _unnamed(args):
        raise UserError(
            f"{', '.join(unnamed)}: not set. Name the images that `make images` built and a registry has, by commit or "
            "digest: export AMLP_STAGES_IMAGE=registry.example.com/amlp/stages:COMMIT"
        )
    if without_credentials(args.data_repo) != args.data_repo:
        raise UserError(
            f"--data-repo {without_credentials(args.data_repo)}: the address must hold no user or password, for "
            "Kubeflow and MLflow write it down with the run."
        )
    if unknown := set(args.fresh) - set(TASKS):
        raise UserError(f"--fresh {', '.join(sorted(unknown))}: expected a task of {', '.join(TASKS)}.")
    # Of drawn images there is no revision.
    data = DataSource(args.data_repo, args.data_rev, args.data_path) if args.data_repo else DataSource()
    if data.repo:
        # Asked here too: a mistake is reported now and not by a task, and a branch means what it meant at this moment.
        found = resolve_version(repo=data.repo, rev=data.rev, path=data.path)
        if not found.uri.startswith("s3://"):
            raise UserError(f"{data.repo}: DVC's default remote is {found.uri}; a cluster's tasks read from S3 only.")
        print(f"Data: {data.path} at commit {found.commit}, {found.md5}")
        data = data if follow else DataSource(data.repo, found.commit, data.path)
    commit, dirty = code_version(Path.cwd())
    if dirty is None:
        raise UserError(
            "This is no git repository, so nobody would know what code ran: submit from the clone that the images were "
            f"built from, or set {COMMIT_VARIABLE} to its commit."
        )
    if dirty:
        # The next change would have the same name.
        print("Files differ from the commit: the run is marked as dirty, and goes without the cache.", file=sys.stderr)
    arguments = pipeline_arguments(
        params, git_commit=f"{commit}-dirty" if dirty else commit, data=data, cluster=cluster, share=args.share
    )
    return arguments, {
        "cluster": cluster,
        "cached": not (dirty or args.no_cache),
        "record": record_of(params),
        "fresh": args.fresh,
        "resources": _resources(args),
    }


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all({*pairs, *pairs.values()}) or len(pairs) < len(words):
        raise UserError(f"--node-selector {' '.join(words)}: expected KEY=VALUE.")
    return pairs


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--toleration {text}: not JSON: {error}") from error


class _OddAnswer(UserError):
    """Something answers in Kubeflow's place, such as a proxy, or a Kubeflow that is not known here."""


def _asked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call kfp's client, which fails in many ways at answers that it does not know."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call(*arguments, **options)
    except (ApiException, HTTPError, OSError):
        raise
    except Exception as error:
        if isinstance(error.__context__, ApiException):
            # A refusal whose text is no UTF-8.
            raise error.__context__ from None
        raise _OddAnswer(f"Kubeflow's answer can't be read ({type(error).__name__}: {error})") from error


def _made(name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Call kfp's client; return the id of this name in the answer."""
    found = getattr(_asked(call, *arguments, **options), name, None)
    if not isinstance(found, str) or not found:
        raise _OddAnswer(f"Kubeflow's answer has no {name}; whether something was made stands on its pages")
    return found


def _json_of(call: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Call kfp's client; return the API's JSON, past kfp's models, which fail at what they do not know."""
    data = _asked(call, _preload_content=False, **options).data
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        # Halves of characters, which JSON may hold, can't be printed.
        json.dumps(found, ensure_ascii=False).encode()
        if isinstance(found, dict):
            return found
    raise _odd(data)


def _odd(data: Any) -> _OddAnswer:
    text = data[:200].decode("utf-8", "replace") if isinstance(data, bytes) else json.dumps(data)[:200]
    return _OddAnswer(f"Kubeflow answers what it never does: {text!r}")


@contextmanager
def _kubeflow(args: argparse.Namespace) -> Iterator[tuple[Any, str | None]]:
    """Connect to Kubeflow's API; yields its client, and the namespace of the runs where users have different ones.

    Raises:
        UserError: it does not answer, or refuses; also within the block.
    """
    import warnings

    # Its client looks for an answer five times, five seconds apart, and warns of versions that nobody has any more.
    warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")
    from kfp import client as kfp_client
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client = _asked(kfp_client.Client, host=args.host, existing_token=os.environ.get(TOKEN_VARIABLE) or None)
        many = _json_of(client._healthz_api.healthz_service_get_healthz).get("multi_user", False)
        if not isinstance(many, bool):
            raise _odd({"multi_user": many})
        if args.namespace and not many:
            raise UserError(
                f"--namespace {args.namespace}: this Kubeflow has no users with namespaces of their own, and runs all "
                "tasks in its own one; leave the option out."
            )
        yield client, (args.namespace or NAMESPACE) if many else None
    except ApiException as error:
        answer = f"{error.status} {error.reason}" if error.status else str(error)
        hint = f"; set {TOKEN_VARIABLE} to a token of yours" if error.status in (401, 403) else ""
        raise UserError(
            f"--host {args.host}: Kubeflow answers {answer}{hint}\n{message_of(error.body)}".strip()
        ) from error
    except _OddAnswer as error:
        raise UserError(f"--host {args.host}: {error}; is it the address of Kubeflow Pipelines?") from error
    except BrokenPipeError:
        # Of standard output: urllib3 has an error of its own for a server's.
        raise
    except (HTTPError, TimeoutError, OSError) as error:
        raise UserError(
            f"--host {args.host}: Kubeflow Pipelines does not answer there: {error}\n"
            "Expected its address, such as http://localhost:8080 with "
            "`kubectl -n kubeflow port-forward service/ml-pipeline-ui 8080:80`."
        ) from error


def _submit(args: argparse.Namespace) -> int:
    from pipelines.compile import write_pipeline
    from pipelines.sync import end_of

    arguments, fixed = _arguments(args)
    with tempfile.TemporaryDirectory() as folder, _kubeflow(args) as (client, namespace):
        package = Path(folder, "training.yaml")
        write_pipeline(package, **fixed)
        experiment = _made("experiment_id", client.create_experiment, args.experiment, namespace=namespace)
        left, why = args.resubmit, None
        while True:
            run_id = _made(
                "run_id",
                client.create_run_from_pipeline_package,
                str(package),
                arguments=arguments,
                run_name=args.name,
                experiment_id=experiment,
                service_account=args.service_account,
            )
            print(f"Run {run_id}", file=sys.stderr if args.json else sys.stdout, flush=True)
            if not (args.wait or args.resubmit):
                return 0
            run = _watch(client, run_id, args)
            last, why = why, _reason(run, run_id, args)
            code = _show(run, run_id, args, why)
            if code == 0 or not left or end_of(run) != "FAILED":
                return code
            if hopeless := _hopeless(why, last):
                logger.warning(f"Not submitted again: {hopeless}.")
                return code
            cache = "finished tasks come from the cache" if fixed["cached"] else "without the cache"
            fresh = f", but for {', '.join(args.fresh)} and what follows" if fixed["cached"] and args.fresh else ""
            logger.warning(f"Submitting again, {left} times at most; {cache}{fresh}.")
            left -= 1


def _hopeless(why: _Reason, last: _Reason | None) -> str:
    """Say why a run that failed would fail again; empty where it may not, or where nobody knows why it failed.

    Args:
        why: it failed.
        last: why the run before it did.
    """
    if "mistake" in why.kinds:
        return "the parameters or the data have to change first"
    # What passes, or kills, comes from outside, whatever words it has.
    if last and why.error and why.error == last.error and why.kinds and set(why.kinds) <= {"error", "memory"}:
        return "it failed for the same reason as before"
    return ""


def _schedule(args: argparse.Namespace) -> int:
    from pipelines.compile import write_pipeline
    from pipelines.cron import next_times

    # Kubeflow's clock, unless its controller is set to another zone.
    times = next_times(args.cron, datetime.now(UTC))
    arguments, fixed = _arguments(args, follow=True)
    with tempfile.TemporaryDirectory() as folder, _kubeflow(args) as (client, namespace):
        package = Path(folder, "training.yaml")
        write_pipeline(package, follow_data=True, **fixed)
        experiment = _made("experiment_id", client.create_experiment, args.experiment, namespace=namespace)
        made = _made(
            "recurring_run_id",
            client.create_recurring_run,
            experiment,
            args.name or "amlp",
            cron_expression=args.cron,
            # A training that takes longer than the interval is not joined by the next.
            max_concurrency=1,
            no_catchup=True,
            params=arguments,
            pipeline_package_path=str(package),
            service_account=args.service_account,
        )
    print(f"Schedule {made}: {args.cron}")
    print(f"Next, in UTC: {', '.join(f'{time:%a %Y-%m-%d %H:%M:%S}' for time in times)}")
    return 0


def _status(args: argparse.Namespace) -> int:
    with _kubeflow(args) as (client, _):
        run = _watch(client, args.run, args) if args.wait else _get(client, args.run)
    return _show(run, args.run, args, _reason(run, args.run, args))


def _get(client: Any, run_id: str) -> dict[str, Any]:
    return _json_of(client._run_api.run_service_get_run, run_id=run_id)


def _watch(client: Any, run_id: str, args: argparse.Namespace) -> dict[str, Any]:
    """Print what changes until the run ends, and return it; an API that is away for a while does not end that.

    A proxy says that it is away by a status, or by a page of its own.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    seen: dict[str, str] = {}
    away: float | None = None
    while True:
        try:
            run = _get(client, run_id)
        except (ApiException, HTTPError, OSError, _OddAnswer) as error:
            status = getattr(error, "status", None)
            if status and status < 500:
                raise
            if away is None:
                logger.warning(f"Kubeflow does not answer, trying again: {status or error}")
                away = time.monotonic()
            if time.monotonic() - away >= OUTAGE:
                raise
        else:
            away = None
            for row in rows_of(run):
                # Not its time, which changes at each look.
                state = f"{row.state}{', from the cache' if row.cached else ''}"
                if seen.get(row.task) != state and not args.json:
                    logger.info(f"{row.task}: {state}")
                seen[row.task] = state
            if run.get("state") in ENDED:
                return run
        time.sleep(PAUSE)


# What Kubeflow calls the end of a run -> our exit code.
_CODES = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": 1, "CANCELED": 1}


def _show(run: dict[str, Any], run_id: str, args: argparse.Namespace, why: _Reason) -> int:
    """Print a run's state and its tasks'; return the exit code."""
    from pipelines.sync import end_of

    link = f"{(args.host or '').rstrip('/')}/#/runs/details/{run_id}"
    state = run.get("state") if isinstance(run.get("state"), str) else None
    if args.json:
        print(json.dumps({**as_json(run, link), "error": why.error or None}, indent=2))
    else:
        terminated = " (it was terminated)" if state != "CANCELED" and end_of(run) == "CANCELED" else ""
        print(f"{run.get('display_name') or 'run'} ({run_id}): {state or 'PENDING'}{terminated}")
        for row in rows_of(run):
            print(f"  {row}")
        if state == "FAILED" and not terminated:
            print(why.error or why.elsewhere)
        print(link)
    return _CODES.get(state or "", RUNNING)


def _mlflow(args: argparse.Namespace) -> RegisterParams:
    """Where the runs are in MLflow; `tracking_uri` says where MLflow is, seen from here."""
    from amlp.params import load_params

    return load_params(args.params).register_


@dataclass(frozen=True)
class _Reason:
    """Why a run failed.

    Args:
        error: as its tasks wrote it to MLflow, since Kubeflow keeps no reasons; empty where that is not known.
        kinds: of errors, as `amlp.registry.outcome.read_error` returns them.
        elsewhere: where else it stands.
    """

    error: str = ""
    kinds: Collection[str] = ()
    elsewhere: str = ""


def _reason(run: dict[str, Any], run_id: str, args: argparse.Namespace) -> _Reason:
    from amlp.registry.outcome import read_error

    if run.get("state") != "FAILED":
        return _Reason()
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return _Reason(
            elsewhere="Why stands in MLflow, at the run's tag pipeline_error: set MLFLOW_TRACKING_URI to see it here. "
            "The failed task's log has it too."
        )
    try:
        register = _mlflow(args)
        return _Reason(
            *read_error(params=register, pipeline=run_id),
            f"Experiment {register.experiment} of MLflow does not say why. Where the run's parameters name another "
            "experiment, name them: --params. The reason stands in the failed task's log too.",
        )
    except UserError as error:
        # The run's state is known all the same.
        print(error, file=sys.stderr)
        return _Reason(elsewhere="Why stands in the failed task's log too.")


def _runs(client: Any, experiment: str) -> list[dict[str, Any]]:
    """Return an experiment's runs as the API's JSON, page by page."""
    runs: list[dict[str, Any]] = []
    token, seen = "", set()
    while token not in seen:
        seen.add(token)
        page = _json_of(
            client._run_api.run_service_list_runs, experiment_id=experiment, page_size=100, page_token=token
        )
        found, token = page.get("runs") or [], page.get("next_page_token") or ""
        if not (isinstance(found, list) and all(isinstance(run, dict) for run in found) and isinstance(token, str)):
            raise _odd(page)
        runs += found
        if not token:
            return runs
    raise _odd({"next_page_token": token})


def _sync(args: argparse.Namespace) -> int:
    """Write to MLflow how runs ended on Kubeflow."""
    from pipelines.sync import experiment_of, sync

    register = _mlflow(args)
    with _kubeflow(args) as (client, namespace):
        try:
            experiment = _made(
                "experiment_id", client.get_experiment, experiment_name=args.experiment, namespace=namespace
            )
        except _OddAnswer as error:
            # kfp has no other word for it.
            if not str(error.__cause__).startswith("No experiment is found"):
                raise
            raise UserError(
                f"--experiment {args.experiment}: Kubeflow at {args.host} has no experiment of this name; name the one "
                "that runs were submitted to."
            ) from error
        runs = _runs(client, experiment)
    closed = sync(runs, register)
    for one in closed:
        if one.changed:
            print(f"{one.pipeline}: {one.outcome}, written to MLflow run {one.run_id}")
    print(f"{len(closed)} runs ended, {sum(one.changed for one in closed)} written at {register.tracking_uri}")
    if others := sum(experiment_of(run) != register.experiment for run in runs):
        print(
            f"{others} runs are not of this pipeline, or not of experiment {register.experiment} of MLflow (--params)"
        )
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `amlp-pipelines`."""
    parser = argparse.ArgumentParser(prog="amlp-pipelines", description=__doc__.split(": ", 1)[1].capitalize())
    logs.add_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(run_command=run)
        logs.add_options(added)
        return added

    def whole(text: str) -> int:
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
        return int(text)

    def kubeflow(to: argparse.ArgumentParser) -> None:
        text = "of Kubeflow Pipelines (default: $KF_PIPELINES_ENDPOINT, else the cluster's own)"
        to.add_argument("--host", default=os.environ.get("KF_PIPELINES_ENDPOINT"), metavar="URL", help=text)
        to.add_argument(
            "--namespace", help=f"of the Profile that runs belong to (default: {NAMESPACE}, if there are any)"
        )

    def mlflow_option(to: argparse.ArgumentParser) -> None:
        text = "where MLflow is; MLFLOW_TRACKING_URI comes first (default: params.yaml)"
        to.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="PATH", help=text)

    def cluster_options(to: argparse.ArgumentParser) -> None:
        add = to.add_argument
        add("--launcher", choices=("pod", "rayjob"), default="pod", help="where trainings run (default: pod)")
        add("--work", default="", metavar="S3", help="s3://bucket/prefix for checkpoints and a Ray cluster's files")
        add(
            "--gpus", type=whole, default=0, metavar="N", help="of a training's pod, or of each Ray worker (default: 0)"
        )
        text = "of every task's pod: standard, small, or a YAML file (default: standard)"
        add("--resources", default="standard", metavar="NAME", help=text)
        add("--cpu", metavar="N", help="of a training's pod, or of each Ray worker (default: what --resources says)")
        add(
            "--memory",
            metavar="SIZE",
            help="of a training's pod, or of each Ray worker (default: what --resources says)",
        )
        add("--node-selector", action="append", default=[], metavar="KEY=VALUE", help="may be given several times")
        add("--toleration", action="append", default=[], metavar="JSON", help="may be given several times")
        add("--queue", default="", help="of Kueue, for RayJobs")
        add("--owner", default="amlp", help="whom to ask about its RayJobs (default: amlp)")
        text = "of one try of a training (default: what --resources says, else 24)"
        add("--deadline-hours", type=float, metavar="N", help=text)

    def run_options(to: argparse.ArgumentParser) -> None:
        kubeflow(to)
        cluster_options(to)
        add = to.add_argument
        add("--params", type=Path, default=Path("params.yaml"), metavar="PATH", help="(default: params.yaml)")
        add("--name", help="of the run")
        add("--experiment", default="amlp", help="of Kubeflow (default: amlp)")
        add("--data-repo", default="", metavar="GIT", help="repository whose images DVC keeps in S3")
        add("--data-rev", default="main", metavar="REV", help="its branch, tag or commit (default: main)")
        add("--data-path", default="", metavar="PATH", help="folder of the images in it")
        add("--share", default="", metavar="S3", help="s3://bucket/prefix that gets the report, with a link for 7 days")
        add("--workers", type=whole, metavar="N", help="of a training (default: num_workers of the parameters)")
        add("--service-account", metavar="NAME", help="of the tasks (default: Kubeflow's)")
        add("--no-cache", action="store_true", help="run every task, whatever was run before")
        text = "run this task, and those that read what it writes, anew; may be given several times"
        add("--fresh", action="append", default=[], metavar="TASK", help=text)

    added = command("compile", _compile, "write the training pipeline as YAML")
    added.add_argument("--out", type=Path, default=Path("pipelines/training.yaml"), metavar="PATH",
                       help="file to write (default: pipelines/training.yaml)")  # fmt: skip
    cluster_options(added)
    added = command("submit", _submit, "run the training pipeline on Kubeflow")
    run_options(added)
    added.add_argument("--wait", action="store_true", help="until it ends; exit code 1 when it fails")
    added.add_argument("--json", action="store_true", help="with --wait: print how it ended as JSON")
    added.add_argument("--resubmit", type=whole, default=0, metavar="N",
                       help="wait, and submit it again when it fails, N times at most; not after a user's mistake, nor "
                       "for the same reason twice, which MLFLOW_TRACKING_URI is asked for")  # fmt: skip
    added = command("schedule", _schedule, "run it again and again, each time with the data as they are then")
    added.add_argument("cron", help='when, with seconds first: "0 0 3 * * 1" is Mondays at 3')
    run_options(added)
    added = command("status", _status, f"say how a run goes; exit code 0, 1 when it failed, {RUNNING} when it runs")
    added.add_argument("run", metavar="RUN", help="its id")
    kubeflow(added)
    mlflow_option(added)
    added.add_argument("--wait", action="store_true", help="until it ends")
    added.add_argument("--json", action="store_true", help="for programs")
    added = command("sync", _sync, "write to MLflow how runs ended, where it does not say so, as of terminated ones")
    kubeflow(added)
    mlflow_option(added)
    added.add_argument("--experiment", default="amlp", help="of Kubeflow (default: amlp)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for what the user can repair, 130 when interrupted."""
    quiet()
    args = build_parser().parse_args(argv)
    logs.configure_by(args)
    try:
        code: int = args.run_command(args)
        sys.stdout.flush()
    except UserError as error:
        logger.error(f"amlp-pipelines: {error}")
        return 2
    except KeyboardInterrupt:
        print("amlp-pipelines: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has what it wanted, as `head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`amlp-pipelines`: compile the training pipeline, run it on Kubeflow, now or by a schedule, and look how it goes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp.environment import COMMIT_VARIABLE, quiet
from amlp.errors import UserError, without_credentials
from pipelines.runs import ENDED, as_json, message_of, rows_of

if TYPE_CHECKING:
    from amlp.cluster.training import ClusterParams
    from amlp.params import RegisterParams
    from pipelines.resources import Resources

# Where Kubeflow's API wants a token, it is read from here: a command line can be seen by others.
TOKEN_VARIABLE = "AMLP_KUBEFLOW_TOKEN"
TRAIN_IMAGE = os.environ.get("AMLP_TRAIN_IMAGE") or "amlp-train:0.1.0"
# Variables that name the images, and when each is needed.
_IMAGES = {"AMLP_STAGES_IMAGE": "", "AMLP_PIPELINE_IMAGE": "", "AMLP_TRAIN_IMAGE": "rayjob"}
# Seconds for which an API that does not answer is borne, while a run is watched.
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
        # Asked here too: a mistake is told now and not by a task, and a branch means what it meant at this moment.
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
    if not all(pairs.values()) or len(pairs) < len(words):
        raise UserError(f"--node-selector {' '.join(words)}: expected KEY=VALUE.")
    return pairs


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--toleration {text}: not JSON: {error}") from error


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
        client = kfp_client.Client(host=args.host, existing_token=os.environ.get(TOKEN_VARIABLE) or None)
        many = client.get_kfp_healthz().multi_user
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
        for left in range(args.resubmit, -1, -1):
            run = client.create_run_from_pipeline_package(
                str(package),
                arguments=arguments,
                run_name=args.name,
                experiment_name=args.experiment,
                namespace=namespace,
                service_account=args.service_account,
            )
            print(f"Run {run.run_id}", file=sys.stderr if args.json else sys.stdout, flush=True)
            if not (args.wait or args.resubmit):
                return 0
            code = _watch(client, run.run_id, args)
            if code == 0 or not left or end_of(_get(client, run.run_id)) != "FAILED":
                return code
            print(f"Submitting again, {left} times at most; finished tasks come from the cache.", file=sys.stderr)
    raise AssertionError


def _schedule(args: argparse.Namespace) -> int:
    from pipelines.compile import write_pipeline
    from pipelines.cron import next_times

    # Kubeflow's clock, unless its controller is set to another zone.
    times = next_times(args.cron, datetime.now(UTC))
    arguments, fixed = _arguments(args, follow=True)
    with tempfile.TemporaryDirectory() as folder, _kubeflow(args) as (client, namespace):
        package = Path(folder, "training.yaml")
        write_pipeline(package, follow_data=True, **fixed)
        experiment = client.create_experiment(args.experiment, namespace=namespace)
        made = client.create_recurring_run(
            experiment.experiment_id,
            args.name or "amlp",
            cron_expression=args.cron,
            # A training that takes longer than the interval is not joined by the next.
            max_concurrency=1,
            no_catchup=True,
            params=arguments,
            pipeline_package_path=str(package),
            service_account=args.service_account,
        )
    print(f"Schedule {made.recurring_run_id}: {args.cron}")
    print(f"Next, in UTC: {', '.join(f'{time:%a %Y-%m-%d %H:%M:%S}' for time in times)}")
    return 0


def _status(args: argparse.Namespace) -> int:
    with _kubeflow(args) as (client, _):
        return _watch(client, args.run, args) if args.wait else _show(_get(client, args.run), args.run, args)


def _get(client: Any, run_id: str) -> Any:
    """Return a run as the API's JSON: kfp's models fail at what they do not know."""
    answer = client._run_api.run_service_get_run(run_id=run_id, _preload_content=False)
    return _parsed(answer)


def _parsed(answer: Any) -> Any:
    try:
        return json.loads(answer.data)
    except ValueError as error:
        text = answer.data[:200].decode("utf-8", "replace")
        raise UserError(f"Kubeflow answers what is no JSON: {text!r}; is --host its address?") from error


def _watch(client: Any, run_id: str, args: argparse.Namespace) -> int:
    """Print what changes until the run ends; an API that is away for a while does not end that."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    seen: dict[str, str] = {}
    away: float | None = None
    while True:
        try:
            run = _get(client, run_id)
        except (ApiException, HTTPError, OSError) as error:
            status = getattr(error, "status", 0) or 500
            if away is None and status >= 500:
                print(f"Kubeflow does not answer, trying again: {status}", file=sys.stderr, flush=True)
            away = time.monotonic() if away is None else away
            if status < 500 or time.monotonic() - away >= OUTAGE:
                raise
        else:
            away = None
            for row in rows_of(run):
                # Not its time, which changes at each look.
                state = f"{row.state}{', from the cache' if row.cached else ''}"
                if seen.get(row.task) != state and not args.json:
                    print(f"{row.task}: {state}", flush=True)
                seen[row.task] = state
            if isinstance(run, dict) and run.get("state") in ENDED:
                return _show(run, run_id, args)
        time.sleep(PAUSE)


# What Kubeflow calls the end of a run -> our exit code.
_CODES = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": 1, "CANCELED": 1}


def _show(run: Any, run_id: str, args: argparse.Namespace) -> int:
    """Print a run's state and its tasks'; return the exit code."""
    from pipelines.sync import end_of

    run = run if isinstance(run, dict) else {}
    link = f"{(args.host or '').rstrip('/')}/#/runs/details/{run_id}"
    state = run.get("state") if isinstance(run.get("state"), str) else None
    if args.json:
        error = _reason(args, run_id) if state == "FAILED" else ""
        print(json.dumps({**as_json(run, link), "error": error or None}, indent=2))
    else:
        terminated = " (it was terminated)" if state != "CANCELED" and end_of(run) == "CANCELED" else ""
        print(f"{run.get('display_name') or 'run'} ({run_id}): {state or 'PENDING'}{terminated}")
        for row in rows_of(run):
            print(f"  {row}")
        if state == "FAILED" and not terminated:
            print(_reason(args, run_id) or _where_the_reason_is(args))
        print(link)
    return _CODES.get(state or "", RUNNING)


def _mlflow(args: argparse.Namespace) -> RegisterParams:
    """Where MLflow is, seen from here: the parameters name it as the cluster does."""
    from amlp.params import load_params

    register = load_params(args.params).register_
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        register = register.model_copy(update={"tracking_uri": address})
    return register


def _reason(args: argparse.Namespace, run_id: str) -> str:
    """Why a run failed, as its tasks wrote it to MLflow, since Kubeflow keeps no reasons; or empty."""
    from amlp.registry.outcome import read_error

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    try:
        return read_error(params=_mlflow(args), pipeline=run_id)
    except UserError as error:
        # The run's state is known all the same.
        print(error, file=sys.stderr)
        return ""


def _where_the_reason_is(args: argparse.Namespace) -> str:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return (
            "Why stands in MLflow, at the run's tag pipeline_error: set MLFLOW_TRACKING_URI to see it here. "
            "The failed task's log has it too."
        )
    return (
        f"Experiment {_mlflow(args).experiment} of MLflow does not say why. Where the run's parameters name another "
        "experiment, name them: --params. The reason stands in the failed task's log too."
    )


def _sync(args: argparse.Namespace) -> int:
    """Write to MLflow how runs ended on Kubeflow."""
    from pipelines.sync import experiment_of, sync

    register = _mlflow(args)
    with _kubeflow(args) as (client, namespace):
        try:
            experiment = client.get_experiment(experiment_name=args.experiment, namespace=namespace)
        except ValueError as error:
            raise UserError(
                f"--experiment {args.experiment}: Kubeflow at {args.host} has no experiment of this name; name the one "
                "that runs were submitted to."
            ) from error
        runs, token = [], ""
        while True:
            answer = _parsed(
                client._run_api.run_service_list_runs(
                    experiment_id=experiment.experiment_id, page_size=100, page_token=token, _preload_content=False
                )
            )
            page = answer if isinstance(answer, dict) else {}
            runs += [run for run in page.get("runs") or [] if isinstance(run, dict)]
            if not (token := page.get("next_page_token") or ""):
                break
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(run_command=run)
        return added

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
        add("--gpus", type=int, default=0, metavar="N", help="of a training's pod, or of each Ray worker (default: 0)")
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
        add("--workers", type=int, metavar="N", help="of a training (default: num_workers of the parameters)")
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
    added.add_argument("--resubmit", type=int, default=0, metavar="N",
                       help="wait, and submit it again when it fails, N times at most")  # fmt: skip
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
    """Run the command line and return its exit code: 2 for what the user can mend."""
    quiet()
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run_command(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"amlp-pipelines: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has what it wanted, as `head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())

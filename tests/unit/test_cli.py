from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amlp import __version__, logs
from amlp.cli import build_parser, main
from amlp.environment import QUIET
from amlp.errors import UserError
from amlp.files import atomic_dir

PIPELINE_COMMANDS = {"ingest", "validate", "preprocess", "pretrain", "finetune", "evaluate", "register", "report"}
HEAVY = {"torch", "numpy", "pandas", "pydantic", "yaml", "mlflow", "ray", "dvc", "kfp", "great_expectations", "tqdm"}


# That Python itself and its installers load at the start.
STARTERS = {"__main__", "_distutils_hack", "_virtualenv", "sitecustomize", "usercustomize", "coverage"}


def amlp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "amlp", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_loads_no_heavy_library_and_few_others(project: Path) -> None:
    """So it is there at once: benchmarks/bench_start.py measures how soon."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\nimport amlp.__main__"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=project, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert not HEAVY & loaded
    rooms = {name.split(".")[1] for name in loaded if name.count(".") > 1 and name.startswith("amlp.")}
    assert rooms == {"cli"}
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= {"amlp", *STARTERS}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    listed = re.findall(r"^    ([\w-]+) +\S", shown, flags=re.MULTILINE)
    assert {*PIPELINE_COMMANDS, "summary", "init", "study", "predict", "export-onnx"} <= set(listed)


def test_defaults_are_the_paths_of_the_pipeline(project: Path) -> None:
    """What dvc.yaml calls without arguments must write the stage's outs and read nothing but its deps."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        program, *arguments = stage["cmd"].split()
        assert program == "amlp"
        args = build_parser().parse_args(arguments)
        [out] = stage["outs"]
        if getattr(args, "out", None):
            assert str(args.out) == out, name
        unread = {"encoder"} if getattr(args, "from_scratch", False) else set()
        for option in {"ingest", "validated", "shards", "encoder", "segmenter", "scratch"} & set(vars(args)) - unread:
            folder = str(getattr(args, option))
            assert any(f"{dep}/".startswith(f"{folder}/") for dep in stage["deps"]), f"{name} reads {folder}"


def test_version_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert end.value.code == 0
    assert lines["amlp"] == __version__
    assert {"python", "torch", "ray", "mlflow", "dvc"} <= set(lines)


def test_mistakes_in_params_end_with_their_list_and_no_traceback(tmp_path: Path, project: Path) -> None:
    (tmp_path / "params.yaml").write_text("sed: 1\npretrain: {epochs: 0}\nfinetune: {lr: fast}\n")
    done = amlp("pretrain", "--params", str(tmp_path / "params.yaml"), cwd=project)
    assert done.returncode == 2
    for named in ("sed: unknown key; did you mean 'seed'?", "pretrain.epochs:", "finetune.lr:"):
        assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_ends_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["pretrian"])
    assert end.value.code == 2
    assert "pretrain" in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(root: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("amlp.reporting.summary.summary", interrupted)
    assert main(["summary"]) == 130
    assert capsys.readouterr().err == "amlp: interrupted\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_what_is_half_written_and_a_second_one_does_not_disturb(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ended(root: Path) -> str:
        with atomic_dir(tmp_path / "out"):
            try:
                signal.raise_signal(first)
            finally:
                signal.raise_signal(signal.SIGTERM)
        return ""

    monkeypatch.setattr("amlp.reporting.summary.summary", ended)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    if first == signal.SIGINT:
        assert main(["summary"]) == 130
    else:
        with pytest.raises(SystemExit, match="143"):
            main(["summary"])
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_quiet_shows_warnings_and_errors_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(root: Path) -> str:
        for level in ("debug", "info", "warning"):
            logging.getLogger("amlp.reporting").log(logging.getLevelNamesMapping()[level.upper()], level)
        raise UserError("no such thing")

    monkeypatch.setattr("amlp.reporting.summary.summary", said)
    shown = {(): "info\n", ("-v",): "debug\ninfo\n", ("-q",): ""}
    for flags, out in shown.items():
        for words in (["summary", *flags], [*flags, "summary"]):
            monkeypatch.setenv("AMLP_LOG_LEVEL", "")
            assert main(words) == 2
            assert capsys.readouterr() == (out, "warning\namlp: no such thing\n")
    monkeypatch.delenv("AMLP_LOG_LEVEL")
    logs.configure()


def test_telemetry_is_off_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    main(["summary", "--root", str(tmp_path)])
    assert {name: os.environ[name] for name in QUIET} == QUIET | {"DO_NOT_TRACK": "0"}


@pytest.mark.parametrize("command", [["pretrain"], ["finetune", "--encoder", "s3://bucket/encoder"]])
def test_training_takes_addresses_in_s3_as_they_are(command: list[str]) -> None:
    flags = [word for name in ("shards", "state", "out") for word in (f"--{name}", f"s3://bucket/{name}")]
    args = build_parser().parse_args([*command, *flags])
    assert (args.shards, args.state, args.out) == ("s3://bucket/shards", "s3://bucket/state", "s3://bucket/out")
    assert command[0] == "pretrain" or args.encoder == "s3://bucket/encoder"

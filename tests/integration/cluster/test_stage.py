"""A stage with its files in S3 gives what it gives with local ones, and goes on from S3 on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from amlp import storage
from amlp.cluster.stage import main
from amlp.params import Params
from amlp.training.finetune import finetune
from amlp.training.pretrain import pretrain
from tests.support.tiny import settings, write_shards


def arguments(bucket: str, stage: str, out: str, *more: str) -> list[str]:
    return [stage, "--params", f"{bucket}/run/params.json", "--shards", f"{bucket}/run/shards",
            "--state", f"{bucket}/state", "--out", f"{bucket}/run/{out}", *more]  # fmt: skip


@pytest.fixture
def run(bucket: str, tmp_path: Path) -> tuple[str, Path, Params]:
    """Inputs in S3 and the same inputs in a local folder."""
    shards, params = write_shards(tmp_path / "shards"), settings()
    storage.publish(shards, f"{bucket}/run/shards")
    storage.write(f"{bucket}/run/params.json", params.model_dump_json(by_alias=True).encode())
    return bucket, shards, params


def keys(uri: str) -> list[str]:
    bucket, prefix = storage.split_uri(uri)
    listed = storage.s3_client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    return [entry["Key"] for entry in listed.get("Contents", [])]


def test_stages_in_s3_give_the_bytes_of_local_ones(run: tuple[str, Path, Params], tmp_path: Path) -> None:
    bucket, shards, params = run
    encoder, state = tmp_path / "encoder", tmp_path / "state"
    pretrain(params=params, shards=shards, out=encoder, state=state)
    finetune(params=params, shards=shards, encoder=encoder, out=tmp_path / "segmenter", state=state)
    finetune(params=params, shards=shards, encoder=None, out=tmp_path / "scratch", state=state)

    assert main(arguments(bucket, "pretrain", "encoder")) == 0
    assert main(arguments(bucket, "finetune", "segmenter", "--encoder", f"{bucket}/run/encoder")) == 0
    assert main(arguments(bucket, "scratch", "scratch")) == 0
    for name, file in (("encoder", "encoder.pt"), ("segmenter", "segmenter.pt"), ("scratch", "segmenter.pt")):
        storage.fetch(f"{bucket}/run/{name}", tmp_path / "fetched" / name)
        assert (tmp_path / "fetched" / name / file).read_bytes() == (tmp_path / name / file).read_bytes()
    assert keys(f"{bucket}/state") == [], "state, Ray's records and the check's probe are cleared"


def test_an_interrupted_stage_resumes_from_s3_with_nothing_local_left(
    run: tuple[str, Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import amlp.training.pretrain as module

    bucket, shards, params = run
    pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    calls, real = [], module.views

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 10:  # in the fourth epoch
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as changed:
        changed.setattr(module, "views", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(arguments(bucket, "pretrain", "encoder"))
    assert any(key.endswith("/last.pt") for key in keys(f"{bucket}/state"))
    assert storage.read(f"{bucket}/run/encoder/encoder.pt") is None

    monkeypatch.setenv("AMLP_CACHE", str(tmp_path / "another-node"))
    assert main(arguments(bucket, "pretrain", "encoder")) == 0
    assert "Resuming after epoch 3 of 4" in capsys.readouterr().out
    assert storage.read(f"{bucket}/run/encoder/encoder.pt") == (tmp_path / "encoder" / "encoder.pt").read_bytes()


def test_missing_inputs_are_reported_before_training(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(bucket, "pretrain", "encoder")) == 2
    assert "params.json: not found" in capsys.readouterr().err
    storage.write(f"{bucket}/run/params.json", json.dumps({"pretrain": {"epoch": 1}}).encode())
    assert main(arguments(bucket, "pretrain", "encoder")) == 2
    assert "pretrain.epoch" in capsys.readouterr().err
    storage.write(f"{bucket}/run/params.json", b"{}")
    assert main(arguments(bucket, "pretrain", "encoder")) == 2
    assert "run/shards: no _manifest.json" in capsys.readouterr().err


def test_a_cluster_that_is_not_what_was_asked_for_is_reported_before_training(
    bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMLP_GIT_COMMIT", "def")
    assert main(arguments(bucket, "pretrain", "encoder", "--commit", "abc")) == 2
    assert "submitted from commit abc, and this image was built from def" in capsys.readouterr().err
    try:
        assert main(arguments(bucket, "pretrain", "encoder", "--commit", "def", "--gpus", "2")) == 2
    finally:
        ray.shutdown()
    assert "The Ray cluster has 0 GPUs, 2 were asked for" in capsys.readouterr().err


def test_a_mistake_is_written_down_and_not_repeated(
    run: tuple[str, Path, Params], capsys: pytest.CaptureFixture[str]
) -> None:
    """Who starts it sees no exit code, and starts it again."""
    bucket, _, params = run
    why = f"{bucket}/run/error/why.json"
    wrong = params.model_dump(by_alias=True) | {"encoder": {**params.encoder.model_dump(), "patch": 1024}}
    storage.write(f"{bucket}/run/params.json", json.dumps(wrong).encode())
    words = arguments(bucket, "pretrain", "encoder", "--error", why)
    assert main(words) == 2
    said = capsys.readouterr().err
    found = json.loads(storage.read(why) or b"")
    assert found["kind"] == "user" and found["message"] in said
    # Even with what would work now: the launcher clears it, when somebody tries the task again.
    storage.write(f"{bucket}/run/params.json", params.model_dump_json(by_alias=True).encode())
    assert main(words) == 2 and found["message"] in capsys.readouterr().err
    storage.remove(f"{bucket}/run/error")
    assert main(words) == 0 and storage.read(why) is None

"""`mlflow models serve` as tests start it, and what any of them has to answer."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from amlp.data.pictures import MAX_PIXELS, read_image
from amlp.models.predictor import Predictor
from devtools.servers import answers, free_ports, running, wait_for

START_SECONDS = 240
JSON = "application/json"


@contextmanager
def scoring_server(programs: Path, model: str, *, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Serve a model as its README says, with the `mlflow` of an environment; yields the address.

    Args:
        programs: the environment's `bin`.
        model: address or folder of the model.
        folder: working folder, which also takes the log.
        environment: variables besides PATH and HOME.
    """
    [port] = free_ports(1)
    command = [str(programs / "mlflow"), "models", "serve", "--model-uri", model, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    settings = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        # Sums in another order are other numbers, by one in the last place.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **environment,
    }
    log, address = folder / "server.log", f"http://127.0.0.1:{port}"
    with running(command, log=log, cwd=folder, environment=settings) as process:
        wait_for(lambda: answers(f"{address}/ping"), name="mlflow models serve", process=process, log=log,
                 seconds=START_SECONDS)  # fmt: skip
        yield address


def post(address: str, body: bytes, kind: str = JSON) -> tuple[int, str]:
    """Status and body of the answer."""
    request = urllib.request.Request(f"{address}/invocations", data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(address: str, inputs: Any, params: Mapping[str, Any] | None = None) -> Any:
    status, text = post(address, json.dumps({"inputs": inputs} | ({"params": params} if params else {})).encode())
    assert status == 200, text
    return json.loads(text)["predictions"]


def mask_of(record: Mapping[str, Any]) -> Any:
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(record["mask"]))))
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels // 255


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def pictures() -> dict[str, bytes]:
    """PNG files of every kind that people have."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:3000, :4000]
    bowl = np.hypot(rows - 1400, columns - 1900)
    buffer = io.BytesIO()
    colours = random.integers(0, 256, (31, 60, 3), dtype=np.uint8)
    Image.fromarray(colours).convert("P").save(buffer, format="PNG")
    return {
        "grey": png(random.integers(0, 256, (61, 45), dtype=np.uint8)),
        "RGB": png(random.integers(0, 256, (38, 52, 3), dtype=np.uint8)),
        "RGBA": png(random.integers(0, 256, (40, 33, 4), dtype=np.uint8)),
        "palette": buffer.getvalue(),
        "16 bits": png(random.integers(0, 65536, (50, 90), dtype=np.uint16)),
        "1 x 1": png(np.array([[7]], np.uint8)),
        "4000 x 3000": png(np.clip(bowl / 10 + random.integers(0, 20, bowl.shape), 0, 255).astype(np.uint8)),
    }


def garbage() -> dict[str, tuple[bytes, str, str]]:
    """Requests that are wrong: body, content type, what the answer has to say."""
    whole = png(np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 5000 + 1, 5000)).save(buffer, format="PNG")

    def one(item: Any) -> bytes:
        return json.dumps({"inputs": [item]}).encode()

    return {
        "bytes that are no picture": (one(text_of(b"\x00\xff garbage" * 99)), JSON, "model input 0: no picture"),
        "half a picture": (one(text_of(whole[: len(whole) // 2])), JSON, "model input 0: can't be read"),
        "a picture of too many pixels": (one(text_of(buffer.getvalue())), JSON, f"{MAX_PIXELS} pixels"),
        "no base64": (one("not base64!"), JSON, "model input 0: text that is no base64"),
        "a number": (one(3), JSON, "model input 0: int"),
        "lists of text": (one([["a", "b"]]), JSON, "model input 0: nested lists"),
        "an unknown encoding": (
            json.dumps({"inputs": [text_of(whole)], "params": {"encoding": "gif"}}).encode(), JSON, "'gif'"),
        "no JSON": (b"\x89PNG", JSON, "valid JSON"),
        "a bare picture": (whole, "image/png", "only supports"),
    }  # fmt: skip


def check_server(address: str, weights: Path, folder: Path) -> None:
    """Hold a server to `evaluate`'s masks, which are those of `Predictor.mask`, and to clear refusals."""
    predictor, expected = Predictor.load(weights), {}
    for name, content in pictures().items():
        (folder / "picture.png").write_bytes(content)
        expected[name] = predictor.mask(read_image(folder / "picture.png"))
        (record,) = ask(address, [text_of(content)])
        np.testing.assert_array_equal(mask_of(record), expected[name], err_msg=name)
        assert record["area"] == expected[name].sum(), name
        assert 0 <= record["uncertainty"] <= 1 and 0 <= record["presence"] <= 1
    assert {0, 1} <= {int(value) for mask in expected.values() for value in np.unique(mask)}
    several = ["grey", "RGB", "16 bits"]
    for name, record in zip(several, ask(address, [text_of(pictures()[name]) for name in several]), strict=True):
        np.testing.assert_array_equal(mask_of(record), expected[name])
    record = ask(address, text_of(pictures()["grey"]), {"encoding": "array", "probability": True})
    np.testing.assert_array_equal(np.array(record["probability"]) > 0.5, expected["grey"])

    for name, (body, kind, message) in garbage().items():
        status, said = post(address, body, kind)
        assert 400 <= status < 500, f"{name}: {status} {said[:300]}"
        assert message in said, f"{name}: {said[:300]}"
        np.testing.assert_array_equal(
            mask_of(ask(address, text_of(pictures()["grey"]))), expected["grey"], err_msg=name
        )

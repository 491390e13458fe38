"""The images under test, and folders that their user can write to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import Images


@pytest.fixture(scope="session")
def images() -> Images:
    """The images that `make image-test` built; tests are skipped without it and without Docker."""
    pattern = os.environ.get("AMLP_TEST_IMAGES")
    if not pattern:
        pytest.skip("AMLP_TEST_IMAGES is not set: run `make image-test`")
    try:
        answered = subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    except FileNotFoundError:
        answered = False
    if not answered:
        pytest.skip("no Docker daemon answers here")
    return Images(pattern)


@pytest.fixture
def data(tmp_path: Path, images: Images) -> Iterator[Path]:
    """An empty folder that the images' user may write to."""
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    # What belongs to that user can then be deleted by the one who runs the tests.
    images.run("train", "find", "/data", "-user", "10001", "-exec", "chmod", "a+rwX", "{}", "+", data=folder)

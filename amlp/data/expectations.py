"""What is expected of a case's facts, judged by Great Expectations; its Data Docs as two pages that need no network.

Great Expectations is imported by `check` alone, because that takes seconds.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from amlp.environment import quiet
from amlp.params import ValidateParams

# Fewer distinct grey values than this: no picture but a mask or a drawing that was filed as one.
MIN_GREY_LEVELS = 8
COLUMNS = ["case_id", "expectation", "column", "value", "reason"]
STYLE = Path(__file__).with_name("data_docs.css")


@dataclass(frozen=True)
class _Rule:
    """An expectation of a column: what is expected in words, and why a case that fails it is bad, or only odd."""

    kind: str
    column: str
    expected: str
    reason: str
    limits: dict[str, float] = field(default_factory=dict)
    severity: str = "critical"


@dataclass(frozen=True)
class Judgement:
    """The finding: a row for each expectation that a case fails, of `COLUMNS`, and the result by expectation.

    `bad` are failures that make a case unusable, `odd` those that somebody should look at.
    """

    bad: pd.DataFrame
    odd: pd.DataFrame
    result: dict[str, Any]


def _rules(params: ValidateParams) -> list[_Rule]:
    side, aspect, contrast, lesion = params.min_side, params.max_aspect, params.min_contrast, params.max_lesion_fraction
    return [
        _Rule("unique", "case_id", "Each case has an id of its own.", "the id stands more than once in the manifest"),
        _Rule("null", "problem", "Image and mask can be read and are of one size.", "{value}"),
        _Rule(
            "between", "height", f"Images are at least {side} pixels high.", "only {value:.0f} pixels high",
            {"min_value": side},
        ),
        _Rule(
            "between", "width", f"Images are at least {side} pixels wide.", "only {value:.0f} pixels wide",
            {"min_value": side},
        ),
        _Rule(
            "between", "aspect", f"The longer side is at most {aspect:g} times the shorter.",
            "one side is {value:.3g} times the other", {"max_value": aspect},
        ),
        _Rule(
            "between", "contrast", f"The standard deviation of the grey values (0 to 1) is at least {contrast:g}.",
            "nearly blank: the standard deviation of its grey values is {value:.2g}", {"min_value": contrast},
        ),
        _Rule(
            "between", "grey_levels", f"An image has at least {MIN_GREY_LEVELS} distinct grey values.",
            "only {value:.0f} distinct grey value(s): a mask or a drawing?", {"min_value": MIN_GREY_LEVELS},
        ),
        _Rule(
            "between", "lesion_fraction", f"Lesions cover at most {lesion:g} of an image.",
            "the mask covers {value:.1%} of the image", {"max_value": lesion},
        ),
        _Rule(
            "null", "contradicts", "An image file has one label only.", "the same image has another label as {value}",
            severity="warning",
        ),
    ]  # fmt: skip


def check(facts: pd.DataFrame, *, params: ValidateParams, docs: Path) -> Judgement:
    """Run a checkpoint on the table of facts.

    Args:
        facts: one row for each case, see `amlp.data.validate`.
        docs: folder to make, for `index.html` (the result) and `expectations.html`; equal facts give equal bytes.
    """
    quiet()  # Great Expectations reads the environment when it is imported.
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    kinds = {
        "unique": gxe.ExpectColumnValuesToBeUnique,
        "null": gxe.ExpectColumnValuesToBeNull,
        "between": gxe.ExpectColumnValuesToBeBetween,
    }
    rules = _rules(params)
    table = facts[list(dict.fromkeys(rule.column for rule in rules))].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as site:
        backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": site}
        context = gx.get_context(
            mode="ephemeral",
            project_config=DataContextConfig(
                store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
                data_docs_sites={"docs": {"class_name": "SiteBuilder", "store_backend": backend}},
                progress_bars={"globally": False},
            ),
        )
        source = context.data_sources.add_pandas("amlp").add_dataframe_asset("manifest")
        suite = gx.ExpectationSuite(
            name="cases",
            expectations=[
                kinds[rule.kind](column=rule.column, description=rule.expected, severity=rule.severity, **rule.limits)
                for rule in rules
            ],
        )
        validation = gx.ValidationDefinition(
            name="validate", data=source.add_batch_definition_whole_dataframe("cases"), suite=context.suites.add(suite)
        )
        checkpoint = gx.Checkpoint(
            name="validate",
            validation_definitions=[context.validation_definitions.add(validation)],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["docs"])],
            # COMPLETE names every case, and not only the first few.
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["case_id"],
                "return_unexpected_index_query": False,
            },
        )
        run = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": table}, run_id=gx.RunIdentifier(run_name="validate")
        )
        (result,) = run.run_results.values()
        docs.mkdir()
        _write_page(Path(site).glob("validations/**/*.html"), docs / "index.html")
        _write_page(Path(site).glob("expectations/*.html"), docs / "expectations.html")
    return _judgement(result, {rule.column: rule for rule in rules}, gx.__version__)


def _judgement(result: Any, rules: dict[str, _Rule], version: str) -> Judgement:
    """Read who failed what from Great Expectations' result."""
    failures: dict[str, list[tuple[Any, ...]]] = {"critical": [], "warning": []}
    expectations = []
    for entry in result.results:
        name, column = entry.expectation_config.type, entry.expectation_config.kwargs["column"]
        # An expectation that could not be tried must not pass for one that held.
        assert not entry.exception_info["raised_exception"], entry.exception_info
        rule, found = rules[column], entry.result
        for failure in found["unexpected_index_list"]:
            value = failure[column]
            failures[rule.severity].append((failure["case_id"], name, column, value, rule.reason.format(value=value)))
        expectations.append(
            {
                "expectation": name,
                "column": column,
                **rule.limits,
                "expected": rule.expected,
                "severity": rule.severity,
                "success": bool(entry.success),
                "cases": int(found["element_count"]),
                "unexpected": int(found["unexpected_count"]),
            }
        )
    bad, odd = (
        pd.DataFrame(failures[severity], columns=COLUMNS).sort_values(COLUMNS[:3], ignore_index=True)
        for severity in ("critical", "warning")
    )
    summary = {"success": bool(result.success), "great_expectations": version, "expectations": expectations}
    return Judgement(bad, odd, summary)


def _write_page(made: Iterable[Path], page: Path) -> None:
    """Turn the one page that was made into one that loads nothing and differs only when the facts do."""
    (source,) = made
    text = source.read_text(encoding="utf-8")
    # All of these come from half a dozen hosts or point there; the scripts only fold and filter.
    text = re.sub(r"<(script|style|footer)\b.*?</\1>|<(link|img)\b[^>]*>", "", text, flags=re.DOTALL)
    # Great Expectations doesn't escape values, so the page is forbidden to run or load anything.
    policy = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
    text = text.replace("</head>", f"{policy}<style>{STYLE.read_text(encoding='utf-8')}</style></head>", 1)
    text = re.sub(r'href="(?:\.\./)+(?:expectations/)?(\w+)\.html"', _flat_link, text)
    # Times, and random ids of elements.
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|\d{8}T\d{6}\.\d{6}Z", "", text)
    numbers: dict[str, str] = {}
    random_id = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    text = re.sub(random_id, lambda found: numbers.setdefault(found[0], str(len(numbers))), text)
    page.write_text(text, encoding="utf-8")


def _flat_link(link: re.Match[str]) -> str:
    return 'href="index.html"' if link[1] == "index" else 'href="expectations.html"'

"""What a wheel holds besides the packages: what `amlp init` writes into projects.

An editable install reads these files where they are, so it gets none: they would grow old there.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TEMPLATE = ("dvc.yaml", "params.yaml", "recipes")


class Template(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"] |= {name: f"amlp/template/{name}" for name in TEMPLATE}

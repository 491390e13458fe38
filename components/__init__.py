"""The stages as Kubeflow components: parse the parameters, call one function of `amlp`, write artifacts.

A component is sent as the source of its function, so the function imports all that it uses, and its annotations are
read when it is defined: no `from __future__ import annotations` in these modules.
"""

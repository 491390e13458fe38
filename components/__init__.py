"""The stages as Kubeflow components: parse the parameters, call one function of `amlp`, write artifacts.

A component is sent as a call of its function in the image (`common`), which `runtime` makes within the task. Its
annotations are read when it is defined: no `from __future__ import annotations` in these modules. The modules are
imported where a pipeline is compiled too, so what is heavy is imported by the functions.
"""

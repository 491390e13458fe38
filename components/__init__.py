"""The stages as Kubeflow components: parse the parameters, call one function of `amlp`, write artifacts.

A task names a function in its image, and `runtime` calls it there. A component's
annotations are read when it is defined: no `from __future__ import annotations` in these modules. The modules are
imported where a pipeline is compiled too, so what is heavy is imported by the functions.
"""

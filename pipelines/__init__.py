"""Kubeflow pipelines that wire the components, and the command that compiles them: `python -m pipelines`."""

"""Extensions of gliaflow: augmentations, generators, classifiers, preprocessing steps and readers of cohort folders.

A plugin is a module or object with hook implementations, announced under the entry-point group ``gliaflow``:

    from gliaflow_plugins import hookimpl

    @hookimpl
    def register_generators(register):
        register(MyGenerator())

``contracts`` describes each kind of plugin; ``hookspecs`` lists the hooks.
"""

from gliaflow_plugins.contracts import Options, PluginError
from gliaflow_plugins.hookspecs import hookimpl

__all__ = ["Options", "PluginError", "hookimpl"]

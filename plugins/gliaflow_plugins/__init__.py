"""Where gliaflow grows: augmentations, generators and readers, registered by name through pluggy hooks.

A plugin is a module or object with hook implementations, announced under the entry-point group ``gliaflow``:

    from gliaflow_plugins import hookimpl

    @hookimpl
    def register_generators(register):
        register(MyGenerator())

``hookspecs`` lists the hooks; ``augmentations``, ``generators`` and ``readers`` say what may be registered.
"""

from gliaflow_plugins.contracts import Options, PluginError
from gliaflow_plugins.hookspecs import hookimpl

__all__ = ["Options", "PluginError", "hookimpl"]

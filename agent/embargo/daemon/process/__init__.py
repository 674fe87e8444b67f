"""How the processes begin and speak to each other; nothing here knows a policy or a protocol of the network."""

#: the module whose `main` is the process, by the name that its unit has
MODULES = {
    "resolver": "embargo.daemon.resolve.resolver",
    "guardian": "embargo.daemon.guard.guardian",
    "compiler": "embargo.daemon.compile.compiler",
}

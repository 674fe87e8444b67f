"""How the processes are started and exchange messages; nothing here knows a policy or a network protocol."""

#: process name, as in its systemd unit → module whose `main` runs as that process
MODULES = {
    "resolver": "embargo.daemon.resolve.resolver",
    "guardian": "embargo.daemon.guard.guardian",
    "compiler": "embargo.daemon.compile.compiler",
}

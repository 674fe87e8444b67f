"""The apps of the catalogue as `status` and `apps` show them."""

from collections.abc import Iterable, Mapping

from embargo import events, records
from embargo.config import Config
from embargo.daemon.ask.orders import AppStatus, FunctionStatus
from embargo.lists.pauses import Pause
from embargo.lists.policy import BYPASS, PORT_FUNCTIONS
from embargo.report import AppReport


def apps(
    reports: Iterable[AppReport], settings: Config, hits: Mapping[str, int] | None = None, paused: Iterable[Pause] = ()
) -> tuple[AppStatus, ...]:
    """Apps with their attempts and pauses. `hits`: attempts by class, `app/function`; None if no agent counts them."""
    pauses = tuple(paused)
    return tuple(_app(report, settings, hits, pauses) for report in reports)


def _app(app: AppReport, settings: Config, hits: Mapping[str, int] | None, paused: tuple[Pause, ...]) -> AppStatus:
    counts = {name: None if hits is None else hits.get(f"{app.id}/{name}", 0) for name in app.functions}
    functions = {
        name: records.widened(FunctionStatus, function, hits=counts[name], inactive=_inactive(settings, app.id, name))
        for name, function in app.functions.items()
    }
    total = None if hits is None else sum(count or 0 for count in counts.values())
    ends = [events.timestamp(each.until) for each in paused if not each.client and each.app in ("", app.id)]
    return records.widened(AppStatus, app, functions=functions, hits=total, paused=max(ends, default=None))


def _inactive(settings: Config, app: str, function: str) -> str | None:
    """Why a function has no effect even if it is on: rules about ports exist only for the interfaces of [firewall] lan."""
    if app != BYPASS or function not in PORT_FUNCTIONS:
        return None
    if not settings.firewall.enabled:
        return "firewall.enabled = false"
    return None if settings.firewall.lan else "firewall.lan is empty"

"""Writes the README's terminal excerpt from real output: python -m tools.excerpt (as root)

The commands run on a gateway of network namespaces with the README's own configuration. `shape` is what stays the same from
run to run; tests/netns/test_readme.py compares it.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.rig import Rig

TOP = Path(__file__).parent.parent
README = TOP / "README.md"
COMMANDS = (
    "dig +noall +comments @192.0.2.1 mygw.alipay.com",
    "embargo why 43.227.188.1",
    "embargo status | head -n 10",
    "embargo verify | tail -n 1",
)
_BLOCK = re.compile(r"(<!-- printed: python -m tools\.excerpt -->\n```console\n)(.*?)(```\n)", re.DOTALL)
_HELD = ("/etc", "/usr/share", "/var/lib", "/var/log", "/run")  # where the agent reads and writes


def configuration() -> str:
    """The README's configuration of a gateway."""
    return README.read_text().partition("```toml\n")[2].partition("```")[0]


def on_gateway(rig: Rig, scratch: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script on the rig's gateway, beside an agent with the README's configuration.

    The script starts when the agent answers, and the agent ends after it. Overlays keep this machine's directories as they are.
    """
    overlays = "".join(
        f"mkdir -p {scratch}/{n}/u {scratch}/{n}/w; mount -t overlay o -o "
        f"lowerdir={d},upperdir={scratch}/{n}/u,workdir={scratch}/{n}/w {d}\n"
        for n, d in enumerate(_HELD)
    )
    whole = f"""set -e
mount -t tmpfs tmpfs {scratch}
{overlays}
mkdir -p /etc/embargo/apps.d /usr/share/embargo
cp -r {TOP}/blocklists /usr/share/embargo/
chmod -R go-w /usr/share/embargo
cat > /etc/embargo/embargo.toml
PATH={TOP}/.venv/bin:$PATH
embargo check | grep -qx "no problems"
embargo run >&2 &
agent=$!
for i in $(seq 200); do
    if dig +tries=1 +time=1 @127.0.0.1 www.alipay.com | grep -q 'app=alipay'; then break; fi
    sleep 0.1
done
{script}
kill $agent
wait $agent
"""
    return subprocess.run(
        [*rig.prefix("gateway"), "unshare", "--mount", "--propagation", "private", "sh", "-c", whole],
        input=configuration(), capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def transcript() -> str:
    """Each command after a `$ `, and what it printed. SystemExit where one fails."""
    script = "".join(f"echo '$ {command}'\n{command}\n" for command in COMMANDS)
    with Rig() as rig, tempfile.TemporaryDirectory(prefix="embargo-excerpt-") as scratch:
        done = on_gateway(rig, Path(scratch), script)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def printed(text: str) -> str:
    """The excerpt in a page."""
    found = _BLOCK.search(text)
    assert found
    return found[2]


def shape(text: str) -> str:
    """The text without what differs between two runs: numbers, addresses, process ids, and the width of columns."""
    text = re.sub(r"\[fe80:[^\]]*\]", "[fe80::]", text)
    text = re.sub(r"\d[\d.:]*", "0", text)
    text = re.sub(r"0 process(es)? \(0(, 0)*\)", "0 processes (0)", text)  # one for each processor
    return re.sub(r" +", " ", text)


def main() -> None:
    README.write_text(_BLOCK.sub(lambda found: found[1] + transcript() + found[3], README.read_text()))


if __name__ == "__main__":
    main()

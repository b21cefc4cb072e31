# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Debian suites through a private apt: own lists, own status, the host's mirror, nothing of /etc/apt changed."""

import os
import re
import subprocess
import time
import urllib.parse
from pathlib import Path

from .progress import Problem, Step

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CODENAMES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
# Members of the host's apt configuration that make sense in ours: how to reach a mirror and how strict to be.
KEEP = re.compile(r"^Acquire::(?!Allow|IndexTargets|Languages|GzipIndexes|CompressionTypes|cdrom)")


def host_sources(etc=Path("/etc/apt")):
    """Yields (uri, suite) of every binary source with component main in the host's apt configuration."""
    files = [etc / "sources.list"]
    files += sorted((etc / "sources.list.d").glob("*.list")) + sorted((etc / "sources.list.d").glob("*.sources"))
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield from (deb822(text) if file.suffix == ".sources" else one_line(text))


def one_line(text):
    """Sources of the one-line format: deb [options] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.split("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb" and "main" in words[3:]:
            yield words[1], words[2]


def deb822(text):
    """Sources of the deb822 format (sources.list(5)); a disabled stanza gives none."""
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {}
        for line in re.sub(r"\n[ \t]+", " ", "\n".join(lines)).splitlines():
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.split()
        off = [word.lower() for word in fields.get("enabled", [])] in (["no"], ["false"], ["0"])
        if off or "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield uri, suite


def mirrors():
    """The URIs of the Debian archive and of its security archive."""
    main = os.environ.get("RNIC_DEBIAN_MIRROR")
    security = os.environ.get("RNIC_DEBIAN_SECURITY_MIRROR")
    for uri, suite in host_sources():
        if re.split(r"[-/]", suite)[0] not in CODENAMES:
            continue
        if "security" in suite:
            security = security or uri
        else:
            main = main or uri
    if not main:
        raise Problem("this machine's apt sources name no Debian mirror: set RNIC_DEBIAN_MIRROR to the URI of one")
    if not security and main.rstrip("/").endswith("/debian"):
        security = main.rstrip("/") + "-security"
    if not security:
        raise Problem("this machine's apt sources name no Debian security mirror: "
                      "set RNIC_DEBIAN_SECURITY_MIRROR to the URI of one")
    return main, security


class Suite:
    """One suite (with its security and, for -backports, its base suite) seen through a private apt in `folder`."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.config = folder / "apt.conf"

    def open(self):
        """Writes the private configuration and fetches the signed indexes."""
        main, security = mirrors()
        base = self.name.removesuffix("-backports")
        lines = [f"deb [signed-by={KEYRING}] {main} {base} main",
                 f"deb [signed-by={KEYRING}] {security} {base}-security main"]
        if self.name != base:
            lines.append(f"deb [signed-by={KEYRING}] {main} {self.name} main")
        if not Path(KEYRING).exists():
            raise Problem(f"{KEYRING} is missing: install the package debian-archive-keyring")
        for part in ("lists/partial", "archives/partial", "none", "state"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "sources.list").write_text("\n".join(lines) + "\n", encoding="ascii")
        (self.folder / "status").write_text("", encoding="ascii")
        self.config.write_text(self.configuration(), encoding="utf-8")
        with Step(f"{self.name}: fetching the package lists", unit="MB") as step:
            result = self.run_slow(["apt-get", "-q", "update", "--error-on=any"], step, self.list_size)
        if result.returncode:
            raise self.fetch_problem(result.stderr)
        return self

    def list_size(self):
        """MB of package lists on disk so far."""
        total = 0
        for path in (self.folder / "lists").rglob("*"):
            try:
                total += path.stat().st_size
            except OSError:  # apt has just renamed it
                continue
        return total / 1e6

    def configuration(self):
        """An apt.conf that points every path into `folder` and keeps the host's way to its mirrors."""
        host = subprocess.run(["apt-config", "dump"], stdout=subprocess.PIPE, text=True, check=True).stdout
        kept = "".join(line + "\n" for line in host.splitlines() if KEEP.match(line) and line.count('"') == 2)
        here = self.folder
        return (f'Dir "{here}";\nDir::State "{here}/state";\nDir::State::lists "{here}/lists";\n'
                f'Dir::State::status "{here}/status";\nDir::Cache "{here}";\nDir::Cache::archives "{here}/archives";\n'
                f'Dir::Etc "{here}";\nDir::Etc::sourcelist "{here}/sources.list";\nDir::Etc::sourceparts "{here}/none";\n'
                f'Dir::Etc::parts "{here}/none";\nDir::Etc::main "{here}/none/apt.conf";\nDir::Etc::preferences "{here}/none/p";\n'
                f'Dir::Etc::preferencesparts "{here}/none";\nDir::Etc::trusted "/dev/null";\nDir::Etc::trustedparts "{here}/none";\n'
                'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\nAPT::Install-Recommends "false";\n'
                'APT::Sandbox::User "root";\nDebug::NoLocking "true";\nAcquire::Languages "none";\nAcquire::Retries "2";\n' + kept
                + (f'APT::Default-Release "{self.name}";\n' if self.name.endswith("-backports") else ""))

    def environment(self):
        return {**os.environ, "APT_CONFIG": str(self.config), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def run_slow(self, command, step, measure):
        """Runs a command of apt in the archives folder and reports `measure()` while it works."""
        with open(self.folder / "log", "w+", encoding="utf-8", errors="replace") as log:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                                  env=self.environment(), cwd=self.folder / "archives") as process:
                try:
                    while process.poll() is None:
                        step.update(measure())
                        time.sleep(0.1)
                except BaseException:
                    process.kill()
                    raise
            log.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, "", log.read())

    def fetch_problem(self, text):
        """What apt said, as one sentence with a remedy."""
        first = next((line[2:].strip() for line in text.splitlines() if line.startswith("E:")), text.strip()[-200:])
        if re.search(r"resolv|connect|timed out|unreachable", text, re.I):
            return Problem(f"the Debian mirror cannot be reached ({first}): check the network, or set RNIC_DEBIAN_MIRROR")
        if re.search(r"404|does not have a Release file|no longer has", text):
            return Problem(f"the mirror does not carry {self.name} ({first}): set RNIC_DEBIAN_MIRROR to one that does")
        if "No space left" in text:
            return Problem(f"the disk of {self.folder} is full: make room, or point XDG_CACHE_HOME to a larger disk")
        return Problem(f"apt could not read {self.name}: {first}; RNIC_DEBIAN_MIRROR names another mirror")

    def resolve(self, names):
        """The packages that installing `names` on an empty system takes, each {name, version, sha256, size, file}."""
        result = subprocess.run(["apt-get", "-qq", "--yes", "-oAcquire::ForceHash=SHA256", "--print-uris", "install", *names],
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment(), check=False)
        if result.returncode:
            raise self.fetch_problem(result.stderr)
        packages = []
        for line in result.stdout.splitlines():
            match = re.fullmatch(r"'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})", line)
            if match:
                name, version, _ = match[1].split("_")
                packages.append({"name": name, "version": urllib.parse.unquote(version), "sha256": match[3],
                                 "size": int(match[2]), "file": match[1]})
        if not packages:
            raise Problem(f"{self.name}: apt offers none of {' '.join(names)}; RNIC_DEBIAN_MIRROR names another mirror")
        return sorted(packages, key=lambda package: package["name"])

    def download(self, packages):
        """Fetches `packages` (apt checks each hash against the signed index); returns their files."""
        archives = self.folder / "archives"
        total = sum(package["size"] for package in packages) / 1e6

        def fetched():
            return sum(entry.stat().st_size for entry in os.scandir(archives) if entry.is_file()) / 1e6

        wanted = [f"{package['name']}={package['version']}" for package in packages]
        with Step(f"{self.name}: downloading {len(packages)} packages", total, "MB", always=True) as step:
            result = self.run_slow(["apt-get", "-q", "download", *wanted], step, fetched)
        if result.returncode:
            raise self.fetch_problem(result.stderr)
        return [archives / package["file"] for package in packages]

    def drop(self, files):
        """Removes downloaded files that have been unpacked."""
        for file in files:
            Path(file).unlink(missing_ok=True)

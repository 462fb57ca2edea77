#!/usr/bin/env python3
"""Containers that are killed while a job goes on, for real. Needs Docker or Podman, and some minutes.

    docker/try.py                                    # builds the image hvtrain:cpu if it is not there
    ENGINE="podman --runtime runc" docker/try.py     # what runs containers; left out: docker or podman
    docker/try.py --image hvtrain:mine

::

    calm    coordinator  node-1  node-2               undisturbed: the weights to compare with
    spare   coordinator  node-1  node-2  node-3       three work, one stands by; a working one is killed, and comes back
    size    coordinator  node-1  node-2               one is killed: two go on; comes back: three; is stopped: two

Everything it makes is removed at the end, also when it is interrupted; each wait has a limit. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PORT = 29400
STEPS = 1000  # as trial/config.yaml has it
UID = 1000  # the user of the image, unless it is built for another
JOB_SECONDS, MOMENT_SECONDS, COMMAND_SECONDS, BUILD_SECONDS = 600.0, 180.0, 60.0, 3600.0

CHECK = """
import sys
from hvtrain.report import ledgercheck
found = ledgercheck.check(sys.argv[1] + "/ledger", steps=int(sys.argv[2]))
print(("exact: " if found.ok else "WRONG: ") + found.verdict + "; sizes " + ", ".join(map(str, found.sizes)))
"""


class Failed(Exception):
    """Something was not as it must be."""


class Engine:
    """The command that runs containers. ``made`` is what it has made: (kind, name)."""

    def __init__(self, command: list[str]):
        self.command, self.made = command, []

    def __call__(self, *arguments: str, seconds: float = COMMAND_SECONDS, check: bool = True) -> str:
        """Run one of its commands; returns what it wrote."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            raise Failed(f"{shlex.join([*self.command, *arguments])} ended with {done.returncode}:\n"
                         f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout.strip()

    def make(self, kind: str, name: str) -> None:
        self.made.append((kind, name))
        self(kind, "create", name)

    def clean(self) -> None:
        """Remove all that was made, the containers first."""
        for name in reversed([name for kind, name in self.made if kind == "container"]):
            subprocess.run([*self.command, "rm", "-f", name], capture_output=True, timeout=COMMAND_SECONDS)
        for kind, name in self.made:
            if kind != "container":
                subprocess.run([*self.command, kind, "rm", "-f", name], capture_output=True, timeout=COMMAND_SECONDS)
        self.made.clear()


class Job:
    """A coordinator's container and ``nodes`` others, in ``network``; ``label`` names the run."""

    def __init__(self, engine: Engine, label: str, nodes: int, *, place: dict[str, str],
                 settings: tuple[str, ...] = ()):
        self.engine, self.label, self.place = engine, label, place
        self.run = f"runs/{label}"
        where = f"{self._name('coordinator')}:{PORT}"
        self.nodes = [self._start(f"node-{number}", "agent", "--coordinator", where, "--slots", "1", "--token-file",
                                  "/run/secrets/token") for number in range(1, nodes + 1)]
        self.coordinator = self._start(
            "coordinator", "run", "/job/config.yaml", "-np", "3", "--slots", "1", f"run.dir={self.run}",
            f"launch.port={PORT}", "launch.token_file=/run/secrets/token", *settings)

    def ps(self) -> dict | None:
        """What `hvtrain ps` says; None while it says nothing."""
        text = self.engine("exec", self.coordinator, "hvtrain", "ps", self.run, "--json", check=False)
        return json.loads(text) if text.startswith("{") else None

    def until(self, what: str, seen) -> dict:
        """Wait until ``seen`` is true of what `hvtrain ps` says."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while time.monotonic() < deadline:
            found = self.ps()
            if found is not None and seen(found):
                job = found["job"]
                say(f"{what}: {job['size']} workers, step {job['step']}, round {job['round']}")
                return found
            if self.state(self.coordinator) != "running":
                raise Failed(f"the job was over before: {what}.\n{self.log(self.coordinator)}")
            time.sleep(0.3)
        raise Failed(f"after {MOMENT_SECONDS:g} s still not so: {what}; hvtrain ps: {self.ps()}\n"
                     f"{self.log(self.coordinator)}")

    def end(self) -> None:
        """Wait for the job's end; it must be a good one, of all containers."""
        deadline = time.monotonic() + JOB_SECONDS
        for name in (self.coordinator, *self.nodes):
            while self.state(name) == "running":
                if time.monotonic() > deadline:
                    raise Failed(f"{name} still runs after {JOB_SECONDS:g} s:\n{self.log(name)}")
                time.sleep(0.5)
            code = self.engine("inspect", "--format", "{{.State.ExitCode}}", name)
            if code != "0":
                raise Failed(f"{name} ended with {code}:\n{self.log(name)}")
        print(indent(self.log(self.coordinator).splitlines()[-5:]))

    def state(self, name: str) -> str:
        return self.engine("inspect", "--format", "{{.State.Status}}", name)

    def log(self, name: str) -> str:
        done = subprocess.run([*self.engine.command, "logs", "--tail", "30", name], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=COMMAND_SECONDS)
        return done.stdout

    def node_at(self, host: str) -> str:
        """The container that calls itself ``host``."""
        return next(name for name in self.nodes if self._hostname(name) == host)

    def worker(self, found: dict) -> str:
        """A node's container in which a worker trains."""
        coordinator = self._hostname(self.coordinator)
        return self.node_at(next(each["host"] for each in reversed(found["workers"])
                                 if each["rank"] is not None and each["host"] != coordinator))

    def in_image(self, *arguments: str) -> str:
        """Run a program of the image on this job's runs."""
        return self.engine("run", "--rm", *self._mounts(), "--entrypoint", arguments[0], self.place["image"],
                           *arguments[1:])

    def _hostname(self, name: str) -> str:
        return self.engine("inspect", "--format", "{{.Config.Hostname}}", name)

    def _start(self, role: str, *arguments: str) -> str:
        name = self._name(role)
        self.engine.made.append(("container", name))
        self.engine("run", "-d", "--name", name, "--network", self.place["network"], *self._mounts(), "--read-only",
                    "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", self.place["image"],
                    *arguments)
        return name

    def _name(self, role: str) -> str:
        return f"{self.place['network']}-{self.label}-{role}"

    def _mounts(self) -> list[str]:
        return ["-v", f"{HERE / 'trial'}:/job:ro", "-v", f"{self.place['token']}:/run/secrets/token:ro",
                "-v", f"{self.place['volume']}:/work/runs"]


def calm(engine: Engine, place: dict[str, str]) -> str:
    title("calm: three containers, a worker each, left alone")
    job = Job(engine, "calm", 2, place=place)
    job.until("all three train", lambda found: trains(found, 3, 1))
    for name in (job.coordinator, *job.nodes):
        print(indent([f"{name}$ hvtrain health", *engine("exec", name, "hvtrain", "health").splitlines()]))
    job.end()
    return evidence(job)


def spare(engine: Engine, place: dict[str, str]) -> str:
    title("spare: three work, a fourth container stands by")
    job = Job(engine, "spare", 3, place=place, settings=("elastic.max_workers=3", "elastic.replace_timeout=20s"))
    found = job.until("three train, four are here", lambda found: trains(found, 3, 100) and len(found["agents"]) == 4)
    victim = job.worker(found)
    step = kill(job, victim, found)
    job.until("the spare one has taken its place",
              lambda found: trains(found, 3, step + 20) and len(found["agents"]) == 3)
    again(job, victim)
    job.until("four are here again", lambda found: trains(found, 3, step + 20) and len(found["agents"]) == 4)
    job.end()
    return evidence(job)


def size(engine: Engine, place: dict[str, str]) -> str:
    title("size: three work, none stands by")
    job = Job(engine, "size", 2, place=place)
    found = job.until("three train", lambda found: trains(found, 3, 100))
    victim = job.worker(found)
    step = kill(job, victim, found)
    found = job.until("two go on", lambda found: trains(found, 2, step + 20))
    again(job, victim)
    found = job.until("three train again", lambda found: trains(found, 3, step + 60))
    other = next(name for name in job.nodes if name != victim)
    say(f"$ {Path(engine.command[0]).name} stop -t 40 {other}      # SIGTERM: it leaves at a step boundary")
    engine("stop", "-t", "40", other)
    job.until("two go on", lambda found: trains(found, 2, step + 80))
    job.end()
    return evidence(job)


def kill(job: Job, victim: str, found: dict) -> int:
    step = found["job"]["step"]
    say(f"$ {Path(job.engine.command[0]).name} kill {victim}      # SIGKILL for all that is in it, at step {step}")
    job.engine("kill", victim)
    if job.state(victim) == "running":
        raise Failed(f"{victim} is still running")
    return step


def again(job: Job, victim: str) -> None:
    say(f"$ {Path(job.engine.command[0]).name} start {victim}")
    job.engine("start", victim)


def trains(found: dict, workers: int, step: int) -> bool:
    return found["job"]["status"] == "active" and found["job"]["size"] == workers and found["job"]["step"] >= step


def evidence(job: Job) -> str:
    """Check the ledger; returns the digest of the final weights."""
    ledger = job.in_image("python", "-c", CHECK, job.run, str(STEPS))
    digest = job.in_image("hvtrain", "ckpt", "digest", job.run).split()[-1]
    say(f"ledger {ledger}")
    say(f"weights {digest}")
    if not ledger.startswith("exact"):
        raise Failed("samples were lost or used twice")
    return digest


def build(engine: Engine, image: str) -> None:
    if engine("images", "-q", image):
        return
    say(f"building {image}, which takes minutes ...")
    kind = ["--format", "docker"] if "podman" in engine.command[0] else []  # HEALTHCHECK is Docker's
    mine = ["--build-arg", f"UID={os.getuid()}"] if os.getuid() else []  # it must be able to read the token
    engine("build", *kind, *mine, "-t", image, "-f", str(HERE / "Dockerfile"), str(HERE.parent), seconds=BUILD_SECONDS)


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def indent(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def command_of_environment() -> list[str]:
    given = shlex.split(os.environ.get("ENGINE", ""))
    found = given or [name for name in ("docker", "podman") if shutil.which(name)][:1]
    if not found:
        sys.exit("neither docker nor podman is here")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default=os.environ.get("HVTRAIN_IMAGE", "hvtrain:cpu"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    engine = Engine(command_of_environment())
    with tempfile.TemporaryDirectory() as directory:
        token = Path(directory) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        Path(directory).chmod(0o755)
        if os.getuid() == 0:
            os.chown(token, UID, UID)
        name = f"hvtrain-try-{os.getpid()}"
        place = {"image": arguments.image, "network": name, "volume": name, "token": str(token)}
        try:
            build(engine, arguments.image)
            engine.make("network", name)
            engine.make("volume", name)
            undisturbed = calm(engine, place)
            same = spare(engine, place) == undisturbed
            size(engine, place)
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            return 1
        finally:
            engine.clean()
    title("ledger  exact in all three: no sample lost, none used twice")
    print(f"weights {'identical to the bit' if same else 'DIFFERENT'} where the number of workers stayed (calm, spare)")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

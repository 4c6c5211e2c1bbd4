"""Runs one Python program that nobody has read: without network, with its own files, and within limits.

Linux namespaces (util-linux's `unshare`) take away the network, other processes and all files but the interpreter's,
which are read-only, and a small `/tmp`; resource limits bound the rest; when time is up everything inside is killed.
Before the first program a probe tries what must not work, and without it nothing is run.

It keeps careless programs from doing harm. It is no wall against an attacker who has a hole in the kernel.
"""

import dataclasses
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxsft.errors import UserError

TOOLS = ("unshare", "mount", "chroot", "setpriv", "prlimit")
SYSTEM = ("/usr", "/bin", "/lib", "/lib64")
NOBODY = 63211  # an id that no account has, for programs that root lets run
MESSAGE = 300  # characters of an error that are kept

# $1 the root to be, $2 directories of the system, $3 of the interpreter; then the command. The shell stays: it is the
# first process of its namespace and cannot leave the group that is killed, and with it all others end.
SETUP = """
set -e
root=$1 system=$2 python=$3; shift 3
while read -r _ _ _ _ at _; do  # of a recursive bind only the top is made read-only by its remount
  for from in $system $python; do
    case "$at" in "$from"/*) mount -o remount,bind,ro "$at";; esac
  done
done < /proc/self/mountinfo
mount -t tmpfs -o size=$DISK,mode=755 tmpfs "$root"
for from in $system $python; do
  if [ -L "$from" ]; then cp -P "$from" "$root$from"
  elif [ -d "$from" ] && [ ! -e "$root$from" ]; then
    mkdir -p "$root$from"; mount --rbind "$from" "$root$from"; mount -o remount,bind,ro "$root$from"
  fi
done
mkdir -p "$root/tmp"; chmod 1777 "$root/tmp"
chroot "$root" "$@" || exit $?
"""

# The word that tells success is written behind the tests: what ends before, with whatever status, has not passed.
RUNNER = f"""
import json, os, sys
os.chdir("/tmp")
job, result = json.load(sys.stdin), os.dup(1)
os.dup2(2, 0)  # where the tests and the word could be read a second time
os.dup2(2, 1)
space = {{"__name__": "__main__"}}
try:
    exec(compile(job["program"], "program", "exec"), space)
    exec(compile(job["tests"], "tests", "exec"), space)
except BaseException as error:
    os.write(result, json.dumps([type(error).__name__, str(error)[:{MESSAGE}]]).encode())
    os._exit(1)
os.write(result, job["word"].encode())
os._exit(0)
"""

# Each thing that is tried fails where the sandbox is one.
PROBE = f"""
import os, socket, sys, time
def works(what):
    try:
        what()
    except (OSError, RuntimeError):
        return False
    return True
def fork():
    for _ in range(256):
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
def look():
    shown, place = {{"/": {{name.strip("/") for name in {SYSTEM}}} | {{"tmp"}}}}, os.path.dirname(sys.executable)
    place = os.path.dirname(place)
    while place != "/" and not place.startswith("/usr/"):  # on the way to the interpreter stands nothing else
        place, name = os.path.split(place)
        shown.setdefault(place, set()).add(name)
    if all(set(os.listdir(place)) <= names for place, names in shown.items()):
        raise OSError
tried = {{"reach a network": lambda: socket.create_connection(("1.1.1.1", 53), 1), "start processes without end": fork,
         "write a file outside": lambda: open("/usr/jaxsft", "w"), "see other files": look,
         "become root": lambda: os.chroot("/tmp")}}
open("inside", "w").write("this must work")
found = [name for name, what in tried.items() if works(what)]
assert not found, ", ".join(found)
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      seconds: of the clock, after which all of its processes are killed.
      memory_mib: address space of a process.
      disk_mib: of its files together, which live in memory.
      processes: at once.
    """

    seconds: float = 10.0
    memory_mib: int = 1024
    disk_mib: int = 16
    processes: int = 16


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
      passed: whether it ran, and all tests behind it.
      why: "passed", "wrong" (an assertion failed), "error" (another exception), "time", "memory", or "ended" (it ended
        before the tests did, or was killed).
      message: of the exception, at most 300 characters.
    """

    passed: bool
    why: str
    message: str = ""


class Sandbox:
    """Runs programs, one at a time.

    Raises:
      UserError: if this machine cannot keep a program in, saying why.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        if reason := _unavailable():
            raise UserError(
                f"programs that a model wrote are run in a sandbox alone, and there is none here: {reason}. Use a "
                "Linux machine where `unshare` may make namespaces, or leave the task out."
            )

    def run(self, program: str, tests: str) -> Outcome:
        """Runs a program, and behind it, in the same namespace, its tests."""
        return _run(program, tests, self.limits)


def _run(program: str, tests: str, limits: Limits) -> Outcome:
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as job, tempfile.TemporaryFile() as result:
        job.write(json.dumps({"program": program, "tests": tests, "word": word}).encode())
        job.seek(0)
        process = subprocess.Popen(
            _command(root, limits),
            stdin=job,
            stdout=result,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DISK": f"{limits.disk_mib}m", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # one group, which is killed together
        )
        try:
            status = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "time")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result.seek(0)
        return _read(result.read(4 * MESSAGE), word, status)


def _read(said: bytes, word: str, status: int) -> Outcome:
    if said == word.encode() and status == 0:
        return Outcome(True, "passed")
    try:
        name, message = json.loads(said)
    except ValueError:
        return Outcome(False, "time" if status == 128 + signal.SIGXCPU else "ended")
    why = {"AssertionError": "wrong", "MemoryError": "memory", "SystemExit": "ended"}.get(name, "error")
    return Outcome(False, why, f"{name}: {message}".rstrip(": "))


def _command(root: str, limits: Limits) -> list[str]:
    """Namespaces, then files, then fewer rights, then limits, then the program."""
    as_root = os.geteuid() == 0
    whose = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"] if as_root else []
    fewer = ["setpriv", *whose, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    bounds = {"as": limits.memory_mib * 2**20, "cpu": int(limits.seconds) + 1, "nproc": limits.processes,
              "fsize": limits.disk_mib * 2**20, "nofile": 64, "core": 0}  # fmt: skip
    limited = ["prlimit", *(f"--{name}={value}" for name, value in bounds.items())]
    own = [] if as_root else ["--user", "--map-root-user"]
    spaces = ["unshare", *own, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    places = [" ".join(SYSTEM), str(_python().parents[1])]
    inside = [*fewer, *limited, str(_python()), "-P", "-s", "-S", "-B", "-c", RUNNER]
    return [*spaces, "sh", "-c", SETUP, "sh", root, *places, *inside]


def _python() -> Path:
    return Path(os.path.realpath(sys._base_executable))


@functools.cache
def _unavailable() -> str:
    """Why programs cannot be kept in, "" if they can."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {sys.platform}"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]:
        return f"{missing[0]} (util-linux) is not installed"
    seen, home = [_python().parents[1], *map(Path, SYSTEM)], Path(os.path.realpath(os.path.expanduser("~")))
    if inside := [place for place in seen if home.is_relative_to(place)]:
        return f"programs see all of {inside[0]}, for the interpreter's sake, and the home folder {home} lies in it"
    if not (first := _run("pass", "pass", Limits())).passed:
        return f"a program that does nothing did not run ({first.why}); namespaces may be forbidden"
    outcome = _run("", PROBE, Limits())
    told = outcome.message.removeprefix("AssertionError: ") or outcome.why
    return "" if outcome.passed else f"in the sandbox a program can still {told}"

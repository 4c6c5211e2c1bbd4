"""scripts/tpu_vm.sh against a gcloud that stands in for two workers: their home is a folder, ssh is bash."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TOOLS = (
    "bash",
    "git",
    "tar",
    "gzip",
    "mktemp",
    "rm",
    "dirname",
    "cp",
    "mkdir",
    "hostname",
    "touch",
    "chmod",
    "cat",
    "env",
)

GCLOUD = """#!/usr/bin/env bash
set -e
printf '%s\\n' --- "$@" >> "$RECORD"
for worker in 0 1; do
  home="$WORKERS/$worker"; mkdir -p "$home"
  case "$4" in
    scp) cp "$5" "$home/${6#*:}" ;;
    ssh) for a in "$@"; do
           case "$a" in --command=*) (cd "$home" && HOME="$home" WORKER="$worker" bash -c "${a#--command=}") ;; esac
         done ;;
  esac
done
"""

# `-c` is the question for the version; `-m venv` makes an environment whose pip writes down what it was asked for.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exit 0; fi
mkdir -p "$3/bin"
echo "PATH=$PWD/$3/bin:\\$PATH" > "$3/bin/activate"
printf '#!/usr/bin/env bash\\nprintf "%%s\\\\n" "$PWD" "$@" >> "$HOME/asked"\\n' > "$3/bin/python"
chmod +x "$3/bin/python"
"""


class Cloud:
    """A PATH with a few tools and a stand-in for gcloud, and what came of calling the script."""

    def __init__(self, folder: Path):
        self.bin, self.workers, self.record = folder / "bin", folder / "workers", folder / "record"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.install("gcloud", GCLOUD)
        self.install("python3", PYTHON)

    def install(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def __call__(self, *arguments: str, script: Path = REPOSITORY / "scripts" / "tpu_vm.sh"):
        environment = {"PATH": str(self.bin), "RECORD": str(self.record), "WORKERS": str(self.workers)}
        return subprocess.run(
            ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self) -> list[list[str]]:
        """Arguments of each call of gcloud."""
        return [call.splitlines() for call in self.record.read_text().split("---\n")[1:]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with the script, a file of each kind, and one that was deleted but not committed."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts" / "tpu_vm.sh", folder / "scripts")
    for name, text in {"kept.py": "1", "gone.py": "2", ".gitignore": "*.big\n"}.items():
        (folder / name).write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (folder / "gone.py").unlink()
    for name in ("new name.py", "weights.big"):
        (folder / name).write_text("3")
    return folder


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    (tmp_path / "cloud").mkdir()
    return Cloud(tmp_path / "cloud")


def test_copies_installs_and_runs_on_every_worker(cloud, checkout):
    command = ["python", "scripts/train.py", "--config.data.fields={'a b': \"c\"}", "$HOME/*"]
    done = cloud("pod-1", "us-east5-a", *command, script=checkout / "scripts" / "tpu_vm.sh")
    assert done.returncode == 0, done.stderr
    copy, install, run = cloud.calls()
    assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"] and copy[5:] == [
        "pod-1:jaxsft.tar.gz", "--zone=us-east5-a", "--worker=all"
    ]  # fmt: skip
    for call in install, run:
        assert call[:7] == ["compute", "tpus", "tpu-vm", "ssh", "pod-1", "--zone=us-east5-a", "--worker=all"]
    for worker in ("0", "1"):
        home = cloud.workers / worker
        with tarfile.open(home / "jaxsft.tar.gz") as archive:
            assert sorted(archive.getnames()) == [".gitignore", "kept.py", "new name.py", "scripts/tpu_vm.sh"]
        folder, *asked = (home / "asked").read_text().splitlines()
        assert folder == str(home / "jaxsft")
        assert asked[:3] == ["-m", "pip", "install"] and asked[5:7] == ["--editable", ".[tpu,gcs]"]
        assert asked[7:] == [folder, *command[1:]], "the command's words arrive as they were given"
    verbs = [line.split()[0] for line in done.stdout.splitlines()]
    assert verbs == ["copying", "installing", "running:", "done:"]


def test_a_queued_resource_is_reached_on_all_its_slices(cloud, checkout):
    done = cloud("--queued", "two", "us-east5-a", "touch", "here", script=checkout / "scripts" / "tpu_vm.sh")
    assert done.returncode == 0, done.stderr
    for call in cloud.calls():
        assert call[2] == "queued-resources" and {"--worker=all", "--node=all"} <= set(call)
    assert all((cloud.workers / worker / "jaxsft" / "here").exists() for worker in ("0", "1"))


def test_a_failure_on_a_worker_is_the_scripts(cloud, checkout):
    done = cloud("pod", "zone-a", "cat", "no-such-file", script=checkout / "scripts" / "tpu_vm.sh")
    assert done.returncode != 0 and "no-such-file" in done.stderr and "done:" not in done.stdout
    cloud.install("python3", "#!/usr/bin/env bash\nexit 1\n")  # an old one
    shutil.rmtree(cloud.workers)
    done = cloud("pod", "zone-a", "touch", "here", script=checkout / "scripts" / "tpu_vm.sh")
    assert done.returncode != 0 and "has no Python 3.11 or newer; see docs/launch.md" in done.stderr
    assert not (cloud.workers / "0" / "jaxsft" / "here").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the TPU's name, its zone and a command"),
        (("pod", "zone-a"), "give the TPU's name, its zone and a command"),
        (("pod", "scripts/train.py", "--config=a"), "is no name and zone of a TPU"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_copied(cloud, arguments, message):
    done = cloud(*arguments)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert not cloud.record.exists()


def test_without_gcloud(cloud):
    (cloud.bin / "gcloud").unlink()
    done = cloud("pod", "zone-a", "python", "scripts/train.py")
    assert done.returncode == 1
    assert done.stderr == (
        "error: gcloud is not on PATH; install the Google Cloud CLI, then run 'gcloud auth login'.\n"
    )


def test_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    for script in REPOSITORY.glob("scripts/*.sh"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

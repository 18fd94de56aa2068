"""spark-submit.sh: what it says, what it passes on, and that its set-up survives being killed, repeated and run twice.

Each test has its own copy of the scripts and a PATH that holds links to the system's small tools, and nothing else but
stand-ins for Java, Python, the compiler, uv and spark-submit: no network, nothing built.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    "awk bash cat cp cut date df dirname env flock grep head ln mkdir mktemp mv nproc paste readlink rm sed sh "
    "sha256sum sleep tail tee touch tr uname"
)
JAR = "a jar"

# One script with many names. CALLS collects what was called; a file named after a step in SLOW makes it hang.
STAND_IN = r"""#!/usr/bin/env bash
name=${0##*/}
echo "$name $*" >>"$CALLS"
copy() { mkdir -p "${1%/*}" && cp -P "$STAND_INS/stand-in" "$1"; }
slow() { if [[ -e $SLOW/$1 ]]; then touch "$SLOW/$1.reached"; while [[ -e $SLOW/$1 ]]; do sleep 0.05; done; fi; }
case "$name $*" in
    "java -version") echo "openjdk version \"${FAKE_JAVA:-17.0.15}\" 2025-04-15" >&2 ;;
    "python"*" -c import sys; print("*"version_info"*) echo "${FAKE_PYTHON:-3.11.9}" ;;
    "python"*" -c import sys; print(sys._base_executable)") echo "$0" ;;
    "python"*" -c import ensurepip"*) [[ -z ${NO_VENV-} ]] ;;
    "python"*" -c import os, sysconfig"*) [[ -z ${NO_HEADERS-} ]] ;;
    "python"*" -m venv "*) copy "$3/bin/python" && copy "$3/bin/uv" ;;
    "python"*" -m pip config"*) exit 1 ;;
    "python"*" wheel "*)
        slow horovod
        while [[ $1 != --wheel-dir ]]; do shift; done
        mkdir -p "$2" && touch "$2/horovod-0.28.1-cp311.whl" ;;
    "uv venv"*)
        echo "uv's cache: ${UV_CACHE_DIR-its own}" >>"$CALLS"
        for name in python spark-submit pytest; do copy "${*: -1}/bin/$name"; done
        mkdir -p "${*: -1}/lib/python3.11/site-packages/pyspark/jars" ;;
    "uv --offline pip install"*) [[ -n ${WARM_CACHE-} ]] ;;
    "uv pip install"*requirements.lock)
        slow packages
        if [[ -n ${NO_NETWORK-} ]]; then echo "error: Failed to fetch: dns error" >&2; exit 1; fi
        if [[ -n ${BROKEN-} ]]; then echo "error: it broke here" >&2; exit 1; fi ;;
    "python -c import certifi"*)
        if [[ -n ${REAL_PYTHON-} ]]; then exec "$REAL_PYTHON" "$@"; fi
        printf '%s' "a jar" >"${*: -1}" ;;
    "c++ "*) [[ -z ${OLD_COMPILER-} ]] ;;
    "spark-submit "* | "pytest "*)
        printf '%s\n' "$name" "$@"
        for variable in PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON SPARK_LOCAL_IP SPARK_HOME; do
            echo "$variable=${!variable-unset}"
        done
        exit "${FAKE_EXIT:-0}" ;;
esac
"""


@dataclass
class Checkout:
    """A copy of the scripts, on a machine of stand-ins."""

    root: Path
    machine: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *args: str) -> list[str]:
        return [str(self.root / "spark-submit.sh"), *args]

    def run(self, *args: str, cwd: str = "/", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), env=self.env | env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, *args: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start in a process group of its own, so that a test can kill all of it; what it says goes to a file."""
        said = self.machine / f"said-{time.monotonic_ns()}"
        with said.open("w") as file:
            process = subprocess.Popen(
                self.command(*args), env=self.env, stdout=file, stderr=file, start_new_session=True
            )
        return process, said

    def calls(self, start: str) -> int:
        log = self.machine / "calls"
        return sum(line.startswith(start) for line in log.read_text().splitlines()) if log.exists() else 0

    def without(self, *names: str) -> None:
        for name in names:
            (self.machine / "bin" / name).unlink()

    def hang(self, step: str) -> Path:
        """Make a step wait until the returned file is deleted."""
        file = self.machine / "slow" / step
        file.touch()
        return file


def make_checkout(tmp_path: Path) -> Checkout:
    root, machine = tmp_path / "the checkout", tmp_path / "machine"
    (root / "conf").mkdir(parents=True)
    shutil.copytree(ROOT / "conf/setup", root / "conf/setup")
    shutil.copytree(ROOT / "conf/spark", root / "conf/spark")
    for name in ("spark-submit.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "jobs").mkdir()
    (root / "jobs/score.py").write_text('"""score: the first line.\n\nMore.\n"""\n')
    (root / "tests").mkdir()
    (root / "tests/test_one.py").touch()
    jars = root / "conf/setup/delta.txt"
    checksum = hashlib.sha256(JAR.encode()).hexdigest()
    coordinates = [line.split()[1] for line in jars.read_text().splitlines() if not line.startswith("#")]
    jars.write_text("".join(f"{checksum} {coordinate}\n" for coordinate in coordinates))

    (machine / "bin").mkdir(parents=True)
    (machine / "slow").mkdir()
    for tool in TOOLS.split():
        (machine / "bin" / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} on this machine"))
    stand_in = machine / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    for name in ("java", "python3.11", "c++"):
        shutil.copy(stand_in, machine / "bin" / name)
    env = {
        "PATH": str(machine / "bin"),
        "HOME": str(tmp_path),
        "XREC_CACHE": str(tmp_path / "cache"),
        "XREC_DISK_GB": "0",
        "CALLS": str(machine / "calls"),
        "STAND_INS": str(machine),
        "SLOW": str(machine / "slow"),
    }
    return Checkout(root, machine, env)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout that is set up already; its tests leave it as it is."""
    made = make_checkout(tmp_path_factory.mktemp("ready"))
    assert made.run("setup").returncode == 0
    return made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def append(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


# What it says


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_explains_itself_before_any_set_up(checkout: Checkout, args: tuple[str, ...]) -> None:
    checkout.without("java", "python3.11", "c++")
    done = checkout.run(*args)
    assert done.returncode == 0
    assert "./spark-submit.sh jobs/pipeline.py" in done.stdout
    assert "jobs/score.py" in done.stdout
    assert "the first line." in done.stdout
    assert not (checkout.root / ".venv").exists()


def test_the_real_help_names_every_job() -> None:
    done = subprocess.run([ROOT / "spark-submit.sh"], capture_output=True, text=True, check=True)
    for job in ROOT.glob("jobs/[!_]*.py"):
        line = next(line for line in done.stdout.splitlines() if f"jobs/{job.name} " in line)
        assert len(line.split()) > 2, f"{job.name} has no docstring"


def test_version(checkout: Checkout) -> None:
    assert checkout.run("--version").stdout.startswith("xrec 0.")


# What it asks of the machine


def check_message(done: subprocess.CompletedProcess[str], what: str, found: str, fix: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("spark-submit.sh:") == 1, done.stderr
    lines = {line.split(":", 1)[0].strip(): line for line in done.stderr.splitlines()}
    assert what in lines["spark-submit.sh"]
    assert found in lines["found"]
    assert fix in lines["fix"]
    assert lines["needed"]


def test_no_java(checkout: Checkout) -> None:
    checkout.without("java")
    check_message(checkout.run("jobs/score.py"), "no Java", "no java on PATH", "openjdk-17-jre-headless")


@pytest.mark.parametrize("version", ["1.8.0_412", "11.0.23", "18.0.2", "25"])
def test_wrong_java(checkout: Checkout, version: str) -> None:
    check_message(checkout.run("setup", FAKE_JAVA=version), "does not run Spark", f"Java {version} (", "JAVA_HOME")


@pytest.mark.parametrize("version", ["17", "17.0.15", "21.0.3", "21-ea"])
def test_right_java(checkout: Checkout, version: str) -> None:
    assert checkout.run("setup", FAKE_JAVA=version).returncode == 0


def test_java_home_counts_before_path(checkout: Checkout, tmp_path: Path) -> None:
    check_message(checkout.run("setup", JAVA_HOME="/nowhere"), "JAVA_HOME has no Java", "/nowhere", "unset JAVA_HOME")
    java = tmp_path / "jdk/bin/java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    check_message(checkout.run("setup", JAVA_HOME=str(tmp_path / "jdk")), "does not start", str(java), "JAVA_HOME")
    (tmp_path / "jdk/release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="11.0.2"\n')
    done = checkout.run("setup", JAVA_HOME=str(tmp_path / "jdk"))
    check_message(done, "does not run Spark", "Java 11.0.2", "JAVA_HOME")
    (tmp_path / "jdk/release").write_text('JAVA_VERSION="21.0.2"\n')
    assert checkout.run("setup", JAVA_HOME=str(tmp_path / "jdk")).returncode == 0


def test_java_is_asked_for_after_the_set_up_too(checkout: Checkout) -> None:
    assert checkout.run("setup").returncode == 0
    check_message(checkout.run("jobs/score.py", FAKE_JAVA="11.0.1"), "does not run Spark", "Java 11.0.1", "JAVA_HOME")


def test_no_python(checkout: Checkout) -> None:
    checkout.without("python3.11")
    check_message(checkout.run("setup"), "no Python 3.11", "no python3 on PATH", "python3.11")


def test_another_python(checkout: Checkout) -> None:
    checkout.without("python3.11")
    shutil.copy(checkout.machine / "stand-in", checkout.machine / "bin/python3")
    done = checkout.run("setup", FAKE_PYTHON="3.12.4")
    check_message(done, "no Python 3.11", "Python 3.12.4", "XREC_PYTHON")
    assert checkout.run("setup").returncode == 0, "a python3 that is a 3.11 is one"


def test_python_without_parts(checkout: Checkout) -> None:
    check_message(checkout.run("setup", NO_VENV="1"), "without its venv", "python3.11", "python3.11")
    check_message(checkout.run("setup", NO_HEADERS="1"), "without its C headers", "python3.11", "python3.11-dev")


def test_no_compiler(checkout: Checkout) -> None:
    checkout.without("c++")
    check_message(checkout.run("setup"), "no C++ compiler", "none of c++", "g++")


def test_old_compiler(checkout: Checkout) -> None:
    check_message(checkout.run("setup", OLD_COMPILER="1"), "too old", "c++", "CXX")


def test_no_flock(checkout: Checkout) -> None:
    checkout.without("flock")
    check_message(checkout.run("setup"), "no flock", "no flock", "util-linux")


def test_too_little_disk(checkout: Checkout) -> None:
    check_message(checkout.run("setup", XREC_DISK_GB="99999999"), "too little disk", "GB free", "free some")


def test_no_place_for_the_cache(checkout: Checkout) -> None:
    check_message(
        checkout.run("setup", XREC_CACHE="/dev/null/x"), "no place for what is built", "/dev/null/x", "XREC_CACHE"
    )


def test_names_everything_that_is_missing_at_once(checkout: Checkout) -> None:
    checkout.without("java", "python3.11", "c++")
    done = checkout.run("setup")
    assert done.returncode == 2
    assert done.stderr.count("spark-submit.sh: no ") == 3


# What it passes on


def spark_submit(checkout: Checkout, *args: str, **env: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments that spark-submit got, and the environment it saw."""
    done = checkout.run(*args, **env)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    variables = dict(line.split("=", 1) for line in lines[-4:])
    return lines[1:-4], variables


def test_arguments_go_through_unchanged(ready: Checkout) -> None:
    args = ["--master", "local[2]", "--conf", "a.b=c d", "jobs/score.py", "--x", "", "*", "a 'quoted' \"word\""]
    got, _ = spark_submit(ready, *args)
    assert got == args


def test_a_bench_is_a_job(ready: Checkout) -> None:
    got, _ = spark_submit(ready, "tests/bench/topk.py", "--all")
    assert got == ["tests/bench/topk.py", "--all"]


def test_the_exit_code_is_the_job_s(ready: Checkout) -> None:
    assert ready.run("jobs/score.py", FAKE_EXIT="7").returncode == 7
    assert ready.run("tests", FAKE_EXIT="5").returncode == 5


LOCAL = "127.0.0.1"


@pytest.mark.parametrize(
    ("args", "address", "has_python"),
    [
        (["jobs/score.py"], LOCAL, True),
        (["--master", "local[2]", "jobs/score.py"], LOCAL, True),
        (["--master=local-cluster[2,1,1024]", "jobs/score.py"], LOCAL, True),
        (["--conf", "spark.master=yarn", "jobs/score.py"], "unset", True),
        (["--conf=spark.master=yarn", "jobs/score.py"], "unset", True),
        (["-v", "--master", "yarn", "jobs/score.py"], "unset", True),
        (["--properties-file", "my.conf", "jobs/score.py"], "unset", True),
        (["--py-files", "a.py", "--master", "yarn", "jobs/score.py"], "unset", True),
        (["--master", "yarn", "--deploy-mode", "cluster", "jobs/score.py"], "unset", False),
        (["--master", "yarn", "--conf", "spark.submit.deployMode=cluster", "jobs/score.py"], "unset", False),
        (["jobs/score.py", "--master", "yarn", "--deploy-mode", "cluster"], LOCAL, True),
    ],
)
def test_environment_follows_the_master(ready: Checkout, args: list[str], address: str, has_python: bool) -> None:
    got, variables = spark_submit(ready, *args)
    python = str(ready.root / ".venv/bin/python") if has_python else "unset"
    assert got == args
    assert variables["SPARK_LOCAL_IP"] == address
    assert (variables["PYSPARK_PYTHON"], variables["PYSPARK_DRIVER_PYTHON"]) == (python, python)
    assert variables["SPARK_HOME"] == str(ready.root / ".venv/lib/python3.11/site-packages/pyspark")


def test_what_the_user_has_set_stays(ready: Checkout) -> None:
    mine = {
        "PYSPARK_PYTHON": "./environment/bin/python",
        "PYSPARK_DRIVER_PYTHON": "python",
        "SPARK_LOCAL_IP": "10.0.0.1",
    }
    _, variables = spark_submit(ready, "jobs/score.py", **mine)
    assert variables.items() >= mine.items()
    _, variables = spark_submit(ready, "jobs/score.py", SPARK_CONF_DIR="/etc/spark/conf")
    assert variables["SPARK_LOCAL_IP"] == "unset", "a cluster's own settings may name a master"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["tests", "-m", "not slow"]),
        (["--all"], ["tests"]),
        (["-k", "java", "-x"], ["tests", "-m", "not slow", "-k", "java", "-x"]),
        (["--all", "-q"], ["tests", "-q"]),
        (["tests/test_one.py::test_a"], ["-m", "not slow", "tests/test_one.py::test_a"]),
    ],
)
def test_tests(ready: Checkout, tmp_path: Path, args: list[str], expected: list[str]) -> None:
    done = ready.run("tests", *args, cwd=str(tmp_path))
    lines = done.stdout.splitlines()
    assert lines[0] == "pytest"
    assert lines[1:-4] == expected
    assert f"PYSPARK_PYTHON={ready.root}/.venv/bin/python" in lines


def test_works_from_another_folder_and_through_a_link(ready: Checkout, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ready.root / "spark-submit.sh")
    done = subprocess.run([link, "jobs/score.py"], env=ready.env, cwd="/", capture_output=True, text=True, check=True)
    assert f"PYSPARK_PYTHON={ready.root}/.venv/bin/python" in done.stdout


# The set-up


def test_the_second_call_sets_up_nothing(checkout: Checkout) -> None:
    first = checkout.run("jobs/score.py")
    assert "[1/6]" in first.stderr
    assert "[6/6]" in first.stderr
    assert "[" not in first.stdout.splitlines()[0], "what it shows goes to stderr"
    second = checkout.run("jobs/score.py")
    assert second.stderr == ""
    assert second.stdout == first.stdout
    assert checkout.calls("uv venv") == 1


def test_settings_and_jars_are_where_a_plain_spark_submit_looks(checkout: Checkout) -> None:
    checkout.run("setup")
    pyspark = checkout.root / ".venv/lib/python3.11/site-packages/pyspark"
    assert sorted(jar.name for jar in pyspark.glob("jars/*")) == [
        "delta-spark_4.0_2.13-4.4.0.jar",
        "delta-storage-4.4.0.jar",
    ]
    for name in ("spark-defaults.conf", "log4j2.properties"):
        assert (pyspark / "conf" / name).read_text() == (checkout.root / "conf/spark" / name).read_text()


@pytest.mark.parametrize("changed", ["requirements.lock", "conf/setup/horovod.txt", "conf/setup/install.sh"])
def test_a_change_of_what_is_installed_starts_over(checkout: Checkout, changed: str) -> None:
    checkout.run("setup")
    (checkout.root / ".venv/left-over").touch()
    append(checkout.root / changed)
    done = checkout.run("setup")
    assert "making it again" in done.stderr
    assert checkout.calls("uv venv") == 2
    assert not (checkout.root / ".venv/left-over").exists()


def test_other_changes_do_not(checkout: Checkout) -> None:
    checkout.run("setup")
    append(checkout.root / "pyproject.toml")
    append(checkout.root / "conf/spark/spark-defaults.conf")
    checkout.run("setup")
    assert checkout.calls("uv venv") == 1


def test_a_moved_checkout_starts_over(checkout: Checkout) -> None:
    checkout.run("setup")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert "making it again" in checkout.run("setup").stderr


def test_a_lost_python_starts_over(checkout: Checkout) -> None:
    checkout.run("setup")
    python = checkout.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert "making it again" in checkout.run("setup").stderr


def test_the_next_checkout_reuses_what_was_built(checkout: Checkout) -> None:
    checkout.run("setup")
    other = Checkout(checkout.root.with_name("other"), checkout.machine, checkout.env)
    shutil.copytree(checkout.root, other.root, ignore=shutil.ignore_patterns(".venv*"))
    assert other.run("setup").returncode == 0
    assert checkout.calls("uv venv") == 2
    assert checkout.calls("python -m pip --python") == 1, "Horovod is built once"
    assert checkout.calls("python3.11 -m venv") == 1
    assert checkout.calls("python -c import certifi") == 2, "the two jars are fetched once"


def test_a_damaged_jar_is_fetched_again(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("setup")
    for jar in (tmp_path / "cache/jars").iterdir():
        jar.write_text("half a j")
    shutil.rmtree(checkout.root / ".venv")
    assert checkout.run("setup").returncode == 0
    assert checkout.calls("python -c import certifi") == 4


def test_the_jars_come_from_a_mirror(checkout: Checkout, tmp_path: Path) -> None:
    mirror = tmp_path / "maven"
    for name in ("delta-spark_4.0_2.13", "delta-storage"):
        jar = mirror / f"io/delta/{name}/4.4.0/{name}-4.4.0.jar"
        jar.parent.mkdir(parents=True)
        jar.write_text(JAR)
    done = checkout.run("setup", REAL_PYTHON=sys.executable, DEFAULT_ARTIFACT_REPOSITORY=f"file://{mirror}/")
    assert done.returncode == 0, done.stderr


def test_the_jars_come_through_the_proxy(checkout: Checkout, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        heads: list[str] = []

        def refuse() -> None:
            connection, _ = proxy.accept()
            with connection:
                heads.append(connection.recv(4096).decode())
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        address = f"http://me:geheim@127.0.0.1:{proxy.getsockname()[1]}"
        done = checkout.run("setup", REAL_PYTHON=sys.executable, https_proxy=address)
        thread.join(timeout=10)
    assert heads[0].startswith("CONNECT repo1.maven.org:443 ")
    assert f"Proxy-Authorization: Basic {b64encode(b'me:geheim').decode()}" in heads[0]
    assert done.returncode == 2
    assert "a download failed (Delta's jars)" in done.stderr
    assert "407 Proxy Authentication Required" in done.stderr
    assert "geheim" not in done.stderr + (tmp_path / "cache/setup.log").read_text()


@pytest.mark.parametrize("step", ["packages", "horovod"])
def test_killed_at_any_time_the_next_call_finishes(checkout: Checkout, tmp_path: Path, step: str) -> None:
    hang = checkout.hang(step)
    process, _ = checkout.start("setup")
    wait_for(hang.with_name(f"{step}.reached").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    hang.unlink()
    assert not (checkout.root / ".venv/.xrec-ready").exists()
    done = checkout.run("jobs/score.py")
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stderr
    assert not list((tmp_path / "cache").glob("new.*")), "nothing half made stays in the cache"


def test_what_a_killed_call_left_running_is_waited_for(checkout: Checkout) -> None:
    hang = checkout.hang("packages")
    first, _ = checkout.start("setup")
    wait_for(hang.with_name("packages.reached").exists)
    first.kill()  # the script alone: its uv goes on, and writes to .venv
    first.wait()
    second, said = checkout.start("setup")
    wait_for(lambda: "waiting" in said.read_text())
    assert second.poll() is None
    hang.unlink()
    assert second.wait(timeout=30) == 0


def test_a_named_cache_holds_what_uv_keeps_as_well(checkout: Checkout, tmp_path: Path) -> None:
    for env in ({}, {"UV_CACHE_DIR": "/mine"}):
        assert checkout.run("setup", **env).returncode == 0
        shutil.rmtree(checkout.root / ".venv")
    del checkout.env["XREC_CACHE"]
    assert checkout.run("setup").returncode == 0
    for place in (tmp_path / "cache/uv", "/mine", "its own"):
        assert checkout.calls(f"uv's cache: {place}") == 1


def test_two_at_once(checkout: Checkout) -> None:
    hang = checkout.hang("packages")
    first, said_first = checkout.start("jobs/score.py")
    wait_for(hang.with_name("packages.reached").exists)
    second, said_second = checkout.start("jobs/score.py")
    wait_for(lambda: "another set-up of this checkout is at work; waiting" in said_second.read_text())
    hang.unlink()
    assert (first.wait(timeout=30), second.wait(timeout=30)) == (0, 0)
    assert "PYSPARK_PYTHON" in said_first.read_text()
    assert "PYSPARK_PYTHON" in said_second.read_text()
    assert checkout.calls("uv venv") == 1


def test_no_network(checkout: Checkout) -> None:
    done = checkout.run("setup", NO_NETWORK="1")
    message = done.stderr[done.stderr.index("spark-submit.sh:") :]
    assert done.returncode == 2
    assert "a download failed" in message
    assert "dns error" in message
    assert "https_proxy" in message
    assert checkout.run("setup").returncode == 0


def test_what_uv_has_already_needs_no_network(checkout: Checkout) -> None:
    assert checkout.run("setup", NO_NETWORK="1", WARM_CACHE="1").returncode == 0


def test_another_failure_shows_the_log_s_end(checkout: Checkout) -> None:
    done = checkout.run("setup", BROKEN="1")
    assert done.returncode == 2
    assert "| error: it broke here" in done.stderr
    assert "this step failed: " in done.stderr

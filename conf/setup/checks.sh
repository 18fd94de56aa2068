# What the machine must have. Each check says what was found, what is needed and how to get it, and goes on, so that
# one call names everything that is missing. Read by spark-submit.sh.
# shellcheck shell=bash disable=SC2154  # root, cache: set by spark-submit.sh

problems=0

problem() { # what, found, needed, fix
    printf 'spark-submit.sh: %s\n  found:  %s\n  needed: %s\n  fix:    %s\n' "$@" >&2
    problems=$((problems + 1))
}

stop_on_problems() { ((problems == 0)) || exit 2; }

# The command that installs a package: named for Debian and its kin first, then for Red Hat's.
install_command() { # apt packages, dnf packages
    local sudo='sudo '
    ((EUID != 0)) || sudo=''
    if command -v apt-get >/dev/null; then
        printf '%sapt-get install %s' "$sudo" "$1"
    elif command -v dnf >/dev/null; then
        printf '%sdnf install %s' "$sudo" "$2"
    else
        printf 'install %s (as Debian calls it) with the package manager of this machine' "$1"
    fi
}

# Prints the version of a java program: from the file beside it, because starting it takes longer; else by asking it.
java_version() {
    local release
    release=$(dirname "$(dirname "$(readlink -f "$1")")")/release
    if [[ -r $release ]] && grep -q '^JAVA_VERSION=' "$release"; then
        sed -n 's/^JAVA_VERSION="\(.*\)"/\1/p' "$release"
    else
        "$1" -version 2>&1 | sed -n 's/.*version "\([^"]*\)".*/\1/p' || true
    fi
}

check_java() {
    local java version fix needed='Java 17 or 21 (a JRE without windows is enough)'
    fix=$(install_command openjdk-17-jre-headless java-21-openjdk-headless)
    if [[ -n ${JAVA_HOME-} ]]; then
        java=$JAVA_HOME/bin/java
        fix="unset JAVA_HOME, or point it to a Java 17 or 21; if there is none: $fix"
        if [[ ! -x $java ]]; then
            problem 'JAVA_HOME has no Java' "JAVA_HOME=$JAVA_HOME without bin/java" "$needed" "$fix"
            return
        fi
    elif ! java=$(command -v java); then
        problem 'no Java' 'no java on PATH, JAVA_HOME is not set' "$needed" "$fix"
        return
    fi
    version=$(java_version "$java")
    case $version in
        17 | 17[.+-]* | 21 | 21[.+-]*) ;;
        '') problem 'Java does not start' "$java" "$needed" "$fix" ;;
        *) problem 'this Java does not run Spark 4.0' "Java $version ($java)" "$needed" "$fix; then set JAVA_HOME to it" ;;
    esac
}

# Sets `python` to the real interpreter (not a venv's link to it: that venv may be the one to be made again).
check_python() {
    local candidate version seen='no python3 on PATH' fix candidates=(python3.11 python3 python)
    fix="$(install_command 'python3.11 python3.11-venv python3.11-dev' 'python3.11 python3.11-devel'), or name one in XREC_PYTHON"
    [[ -z ${XREC_PYTHON-} ]] || candidates=("$XREC_PYTHON")
    python=''
    for candidate in "${candidates[@]}"; do
        version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if [[ $version == 3.11.* ]]; then
            python=$("$candidate" -c 'import sys; print(sys._base_executable)')
            break
        fi
        seen="Python $version ($(command -v "$candidate"))"
    done
    if [[ -z $python ]]; then
        problem 'no Python 3.11' "$seen" 'Python 3.11 (torch starts there, Petastorm and Horovod stop there)' "$fix"
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        problem 'Python without its venv module' "$python" 'the modules venv and ensurepip' \
            "$(install_command python3.11-venv python3.11)"
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        problem 'Python without its C headers' "$python" 'Python.h, to build Horovod' \
            "$(install_command python3.11-dev python3.11-devel)"
}

check_compiler() {
    local compiler candidate fix
    fix=$(install_command g++ gcc-c++)
    for candidate in ${CXX:+"$CXX"} c++ g++ clang++; do
        compiler=$(command -v "$candidate") && break
    done
    if [[ -z ${compiler-} ]]; then
        problem 'no C++ compiler' 'none of c++, g++, clang++ on PATH' 'a compiler for C++20 (g++ 11 or newer), to build Horovod' "$fix"
    elif ! "$compiler" -std=c++20 -fsyntax-only -x c++ - <<<$'#include <concepts>\n#include <source_location>' 2>/dev/null; then
        problem 'this C++ compiler is too old' "$("$compiler" --version 2>&1 | head -n 1) ($compiler)" \
            'a compiler for C++20 (g++ 11 or newer), to build Horovod' "$fix, and name it in CXX"
    fi
}

check_machine() {
    [[ $(uname -sm) == 'Linux x86_64' ]] ||
        problem 'this machine is of another kind' "$(uname -sm)" 'Linux x86_64: requirements.lock is made for it' \
            'run it in a Linux container or on a Linux machine'
}

check_flock() {
    command -v flock >/dev/null ||
        problem 'no flock' 'no flock on PATH' 'flock, so that two calls do not set up at once' \
            "$(install_command util-linux util-linux)"
}

check_folders() {
    mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]] ||
        problem 'no place for what is built' "$cache cannot be written" 'a folder that survives the checkout' 'name one in XREC_CACHE'
    [[ -w $root ]] ||
        problem 'no place for .venv' "$root cannot be written" 'a checkout of your own' "copy or clone it to where you may write"
}

check_disk() {
    local free needed=${XREC_DISK_GB:-12}
    free=$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }')
    ((free >= needed)) ||
        problem 'too little disk' "$free GB free for $root" "$needed GB (XREC_DISK_GB asks for less)" \
            'free some, or move the checkout to another disk'
}

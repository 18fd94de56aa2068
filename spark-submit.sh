#!/usr/bin/env bash
# Runs a job, or the tests, with everything they need; the first call makes the environment in .venv.
# What the machine must have is checked in conf/setup/checks.sh, the environment is made in conf/setup/install.sh.
set -euo pipefail

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
setup=$root/conf/setup
venv=$root/.venv
cache=${XREC_CACHE:-${XDG_CACHE_HOME:-~/.cache}/xrec}

# Everything that is ours to say goes to stderr: stdout belongs to the job.
say() { printf '%s\n' "$*" >&2; }

help() {
    cat <<'EOF'
xrec: cross-category recommendations for retailers, on Spark

  ./spark-submit.sh [spark-submit's options] jobs/X.py [the job's options]
  ./spark-submit.sh tests [--all] [pytest's options]    the slow ones run with --all
  ./spark-submit.sh setup                               make the environment, run nothing
  ./spark-submit.sh --help | --version

Examples
  ./spark-submit.sh jobs/pipeline.py
  ./spark-submit.sh jobs/pipeline.py --help
  ./spark-submit.sh --master 'local[2]' --driver-memory 8g jobs/pipeline.py
  ./spark-submit.sh --master yarn --deploy-mode client jobs/pipeline.py
  ./spark-submit.sh tests tests/test_setup.py -k java

EOF
    list_jobs
    cat <<'EOF'
The first call makes the environment in .venv: about five minutes, 3 GB to fetch, 7 GB on disk. Later calls
start at once. It needs Linux, Python 3.11, Java 17 or 21 and a C++ compiler, and says so where one is missing.
Spark's settings are in conf/spark/spark-defaults.conf; each is an option as well (--conf key=value).

Environment variables, none of them needed
  JAVA_HOME       the Java to use, else the one on PATH
  XREC_PYTHON     the Python 3.11 to make .venv from, else the one on PATH
  XREC_CACHE      where built parts are kept for the next checkout (~/.cache/xrec)
  XREC_DISK_GB    the free space to ask for before the set-up (12)
  HOROVOD_GPU_OPERATIONS=NCCL    build Horovod for GPUs (needs CUDA's compiler and NCCL; delete .venv to rebuild)
  PIP_INDEX_URL, https_proxy     as pip knows them
EOF
}

# One line per job: the first line of its docstring, without the job's name before it.
list_jobs() {
    local job jobs=("$root"/jobs/[!_]*.py)
    [[ -e ${jobs[0]} ]] || return 0
    printf 'Jobs\n'
    for job in "${jobs[@]}"; do
        printf '  jobs/%-24s%s\n' "${job##*/}" \
            "$(sed -n '/"""/ { s/^[^"]*"""//; /^ *$/ { n; s/^ *//; }; s/""".*//; s/^[a-z_]*: //; p; q; }' "$job")"
    done
    printf '\n'
}

version() {
    printf 'xrec %s, Spark %s\n' "$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")" \
        "$(sed -n 's/^pyspark==\([^ ]*\).*/\1/p' "$root/requirements.lock")"
}

# Names the environment that this checkout should have. The place counts too: a moved .venv does not work.
wanted_environment() {
    { printf '%s\n' "$root" && cat "$root/requirements.lock" "$setup"/*.{txt,cmake,sh}; } | sha256sum | cut -c1-16
}

# The stamp is written last, so an interrupted set-up has none; python is a link that may have lost its target.
is_ready() {
    [[ -x $venv/bin/python && -f $venv/.xrec-ready && $(<"$venv/.xrec-ready") == "$(wanted_environment)" ]]
}

prepare() {
    # shellcheck source=conf/setup/checks.sh
    source "$setup/checks.sh"
    if is_ready; then
        check_java
        stop_on_problems
    else
        # shellcheck source=conf/setup/install.sh
        source "$setup/install.sh"
        set_up
    fi
    export PATH=$venv/bin:$PATH
    # Another Spark of this machine would not fit what is in .venv.
    export SPARK_HOME=$venv/lib/python3.11/site-packages/pyspark
}

# Sets `master` and `deploy_mode` from spark-submit's own options; stops at the job, whose options are its own.
read_spark_options() {
    local setting
    master='' deploy_mode=''
    while (($#)); do
        setting=''
        case $1 in
            --master=* | --deploy-mode=*) setting=$1 ;;
            --conf=*) setting=${1#*=} ;;
            --supervise | --verbose | -v | --*=*) ;;
            --master | --deploy-mode) setting=$1=${2-} && shift ;;
            --conf | -c) setting=${2-} && shift ;;
            -*) shift ;; # every other option has a value
            *) return 0 ;;
        esac
        case $setting in
            --master=* | spark.master=*) master=${setting#*=} ;;
            --deploy-mode=* | spark.submit.deployMode=*) deploy_mode=${setting#*=} ;;
            *) ;;
        esac
        shift || return 0
    done
}

# What the user has set stays; only what is missing is filled in.
export_spark_environment() {
    read_spark_options "$@"
    if [[ -z $master && -z ${SPARK_CONF_DIR-} && " $*" != *" --properties-file"* ]]; then
        master=$(sed -n 's/^spark\.master[ =]*//p' "$root/conf/spark/spark-defaults.conf")
        master=${master:-local[*]}
    fi
    # In cluster mode the driver runs on another machine, where this path means nothing.
    if [[ $deploy_mode != cluster ]]; then
        export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$venv/bin/python}
        export PYSPARK_DRIVER_PYTHON=${PYSPARK_DRIVER_PYTHON:-$venv/bin/python}
    fi
    # A local run must not depend on the machine's host name having an address, nor show its UI to the network.
    if [[ $master == local* ]]; then
        export SPARK_LOCAL_IP=${SPARK_LOCAL_IP:-127.0.0.1}
    fi
}

run_job() {
    export_spark_environment "$@"
    exec "$venv/bin/spark-submit" "$@"
}

run_tests() {
    local argument where=tests args=(-m 'not slow')
    if [[ ${1-} == --all ]]; then
        shift
        args=()
    fi
    cd "$root"
    for argument; do # a path among pytest's options narrows the run
        [[ $argument != -* && -e ${argument%%::*} ]] && where=
    done
    export_spark_environment
    exec "$venv/bin/pytest" ${where:+"$where"} "${args[@]}" "$@"
}

main() {
    case ${1---help} in
        -h | --help) help ;;
        --version) version ;;
        setup)
            prepare
            say 'xrec: .venv is ready; to work in it: source .venv/bin/activate'
            ;;
        tests | tests/)
            prepare
            run_tests "${@:2}"
            ;;
        *)
            prepare
            run_job "$@"
            ;;
    esac
}

# In one go: bash reads a script as it runs it, and this file may change while the call waits.
{
    main "$@"
    exit
}

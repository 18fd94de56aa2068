# Makes the environment in .venv. Read by spark-submit.sh.
# Safe to interrupt at any moment: the stamp comes last, a .venv without it is made again, and what goes into the
# cache is built beside its place and moved there in one go.
# shellcheck shell=bash disable=SC2154  # root, setup, venv, cache: set by spark-submit.sh; python: by checks.sh

steps=6
number=0
# What pip, uv and urllib say when they reach nobody.
no_network='dns error|name resolution|name or service not known|connection (refused|reset|timed out)'
no_network+='|network is unreachable|error sending request|newconnectionerror|proxyerror|timed out|urlopen error|http error'

set_up() {
    local wanted start=$SECONDS
    check_flock
    check_java
    check_python
    check_compiler
    check_machine
    check_folders
    stop_on_problems
    cache=$(readlink -f "$cache")
    log=$cache/setup.log
    # Children inherit the locks: while something that a killed call left behind still writes, nobody else does.
    lock "$root/.venv.lock" 'this checkout'
    is_ready && unlock && return
    lock "$cache/lock" 'this cache'
    if [[ -e $venv ]]; then
        say 'xrec: .venv is unfinished or out of date: making it again'
        rm -rf "$venv"
    fi
    rm -rf "$cache"/new.*
    check_disk
    stop_on_problems
    wanted=$(wanted_environment)
    uv_home=$cache/uv-$(pinned uv "$setup/uv.txt")-python3.11
    wheels=$cache/$(horovod_key)

    say 'xrec: making the environment in .venv; only the first call does (a few minutes, about 3 GB to fetch)'
    trap stop_watching EXIT
    step "uv $(pinned uv "$setup/uv.txt"), the installer" get_uv
    step "$(grep -c '^[^ #].*==' "$root/requirements.lock") packages from requirements.lock" install_packages
    step "Horovod $(pinned horovod "$setup/horovod.txt")" install_horovod
    step "Delta's jars" install_jars
    step 'xrec itself, and its settings for Spark' install_checkout
    step 'trying what was installed' try_environment
    printf '%s\n' "$wanted" >"$venv/.xrec-ready.new"
    mv "$venv/.xrec-ready.new" "$venv/.xrec-ready"
    unlock
    say "xrec: made in $((SECONDS - start)) s"
}

pinned() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "$2"; }

lock() { # file, whose it is
    local fd start=$SECONDS
    exec {fd}>>"$1"
    locks+=("$fd")
    flock -n "$fd" && return
    say "xrec: another set-up of $2 is at work; waiting for it"
    until flock -w 10 "$fd"; do
        say "$(progress "$start")"
    done
}

unlock() {
    local fd
    for fd in "${locks[@]}"; do exec {fd}>&-; done
}

# Runs one function with its output in the log, shows every ten seconds what the log says, then the time it took.
step() { # title, function
    local start=$SECONDS rc
    number=$((number + 1))
    say "[$number/$steps] $1"
    : >"$log"
    watch_log "$start" &
    watcher=$!
    disown
    set +e
    (set -e && cd "$root" && "$2") >"$log" 2>&1
    rc=$?
    set -e
    stop_watching
    ((rc == 0)) || fail "$1" "$rc"
    say "      done in $((SECONDS - start)) s"
}

progress() { # since when
    printf '      %3d s  %s' $((SECONDS - $1)) \
        "$(tail -n 50 "$log" 2>/dev/null | tr '\r' '\n' | sed 's/^ *//; /^$/d' | tail -n 1 | cut -c1-100)"
}

# Holds neither the locks nor stdout, and ends with the call that started it, even if that one is killed (a process
# that nobody has waited for yet still has a number, but no program).
watch_log() {
    local fd
    unlock
    trap - EXIT
    exec {fd}<> <(:) >/dev/null
    while ! read -rt 10 -u "$fd" && [[ -e /proc/$$/exe ]]; do
        say "$(progress "$1")"
    done
}

stop_watching() {
    [[ -z ${watcher-} ]] || kill "$watcher" 2>/dev/null || true
    watcher=''
}

fail() { # step, exit code
    local again='run the same command again: what was finished is kept'
    ((${2} < 128)) || exit "$2" # a signal: the user knows
    if grep -qiE "$no_network" "$log"; then
        printf '%s\n' "spark-submit.sh: a download failed ($1)" \
            "  found:  $(grep -iE "$no_network" "$log" | tail -n 1 | sed 's/^ *//; s/.*\(.\{100\}\)$/...\1/')" \
            '  needed: the package registries of Python and Maven, or mirrors of them' \
            '  fix:    check the network; behind a proxy set https_proxy, for mirrors PIP_INDEX_URL and' \
            "          DEFAULT_ARTIFACT_REPOSITORY; then $again" >&2
    elif grep -qi 'no space left' "$log"; then
        printf '%s\n' "spark-submit.sh: the disk is full ($1)" "  fix:    free some space, then $again" >&2
    else
        tail -n 25 "$log" | sed 's/^/      | /' >&2
        printf '%s\n' "spark-submit.sh: this step failed: $1" "  the whole log: $log" >&2
    fi
    exit 2
}

pip() { # of which python, arguments
    PIP_USER=0 PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1 "$1" -m pip "${@:2}"
}

get_uv() {
    local new
    [[ ! -x $uv_home/bin/uv ]] || pip "$uv_home/bin/python" --version || rm -rf "$uv_home" # its Python may be gone
    [[ ! -x $uv_home/bin/uv ]] || return 0
    new=$(mktemp -d "$cache/new.XXXXXX")
    "$python" -m venv "$new"
    pip "$new/bin/python" install --require-hashes --only-binary :all: -r "$setup/uv.txt"
    rm -rf "$uv_home"
    mv "$new" "$uv_home"
}

# uv, told where pip's settings point to; VIRTUAL_ENV would name another environment.
uv() {
    local index=${PIP_INDEX_URL:-}
    [[ -n $index ]] || index=$(pip "$uv_home/bin/python" config get global.index-url 2>/dev/null) || true
    [[ -z $index || -n ${UV_INDEX_URL-}${UV_DEFAULT_INDEX-} ]] || export UV_DEFAULT_INDEX=$index
    # Who names a cache may have a home that cannot be written.
    [[ -z ${XREC_CACHE-} ]] || export UV_CACHE_DIR=${UV_CACHE_DIR:-$cache/uv}
    UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} "$uv_home/bin/uv" "$@"
}

install_packages() {
    uv venv --no-project --python "$python" "$venv"
    # --no-deps: Petastorm and torch ask for different setuptools, and both work with the locked one.
    local install=(pip install --python "$venv/bin/python" --no-deps --require-hashes -r requirements.lock)
    # A second checkout finds everything in uv's cache, and then needs no network.
    uv --offline "${install[@]}" || uv "${install[@]}"
}

# A built Horovod fits one torch, one Python, one kind of machine, and the way it was built.
horovod_key() {
    printf 'horovod-%s-torch%s-cp311-%s-%s-%s' "$(pinned horovod "$setup/horovod.txt")" \
        "$(pinned torch "$root/requirements.lock")" "$(uname -sm | tr ' ' '-')" "${HOROVOD_GPU_OPERATIONS:-CPU}" \
        "$(cat "$setup"/horovod* "$setup/cmake.sh" | sha256sum | cut -c1-8)"
}

install_horovod() {
    [[ -d $wheels ]] || build_horovod
    uv pip install --python "$venv/bin/python" --no-deps "$wheels"/horovod-*.whl
}

# -w: torch's headers and Horovod warn by the hundred, which hides how far the compiler is.
build_horovod() {
    local new
    new=$(mktemp -d "$cache/new.XXXXXX")
    PATH=$venv/bin:$PATH TMPDIR=$new CXXFLAGS="-w ${CXXFLAGS-}" \
        HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
        HOROVOD_CMAKE=$setup/cmake.sh CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL=$(compilers_at_once) \
        CMAKE_TOOLCHAIN_FILE=$setup/horovod-toolchain.cmake \
        pip "$uv_home/bin/python" --python "$venv/bin/python" wheel --verbose --no-build-isolation --no-deps \
        --no-cache-dir --require-hashes --wheel-dir "$new/wheels" -r "$setup/horovod.txt"
    mv "$new/wheels" "$wheels"
    rm -rf "$new"
}

# One per core, as long as there are 2 GB for each: torch's headers take that much.
compilers_at_once() {
    awk -v cores="$(nproc)" '/^MemAvailable/ { n = int($2 / 2097152); print n < 1 ? 1 : n < cores ? n : cores }' /proc/meminfo
}

# In Spark's own folder every spark-submit finds them, without --packages and without a download at each start.
install_jars() {
    local checksum coordinate group artifact release name jar
    while read -r checksum coordinate; do
        IFS=: read -r group artifact release <<<"$coordinate"
        name=$artifact-$release.jar
        jar=$cache/jars/${group}_$name
        sha256sum --check --status <<<"$checksum  $jar" 2>/dev/null || fetch_jar "${group//.//}/$artifact/$release/$name" "$jar"
        sha256sum --check <<<"$checksum  $jar"
        cp "$jar" "$venv/lib/python3.11/site-packages/pyspark/jars/$name"
    done < <(grep -v '^#' "$setup/delta.txt")
}

# Not by Spark's resolver: Java knows no https_proxy, and Spark has all that these jars would pull in.
fetch_jar() { # path in the repository, file
    local new repository=${DEFAULT_ARTIFACT_REPOSITORY:-https://repo1.maven.org/maven2}
    new=$(mktemp -d "$cache/new.XXXXXX")
    "$venv/bin/python" -c 'import certifi, shutil, ssl, sys, urllib.request
context = ssl.create_default_context()
context.load_verify_locations(certifi.where())
with urllib.request.urlopen(sys.argv[1], timeout=60, context=context) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)' "${repository%/}/$1" "$new/jar"
    mkdir -p "$cache/jars"
    mv "$new/jar" "$2"
    rm -rf "$new"
}

install_checkout() {
    local conf=$venv/lib/python3.11/site-packages/pyspark/conf
    uv pip install --python "$venv/bin/python" --no-deps --no-build-isolation --editable "$root"
    mkdir -p "$conf"
    ln -sfn "$root"/conf/spark/* "$conf/"
}

# Says at once, and in one place, what would otherwise fail in the middle of a job. It also compiles what every process of
# a run imports, as many an image tells Python not to, and then each of them would do it again; the top-K kernel, to machine code.
try_environment() {
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c 'import deltalake, delta, pandas, petastorm, pyspark.daemon, pyspark.ml, \
        pyspark.sql, horovod.torch, horovod.spark.task.gloo_exec_fn, torch._dynamo, xrec.generators.compiled, xrec.runs.summary, xrec.sequence.ranks'
}

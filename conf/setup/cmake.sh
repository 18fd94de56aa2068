#!/usr/bin/env bash
# Horovod's setup.py hands make's options to cmake (after --); Ninja, which comes with the environment, has others.
set -euo pipefail
arguments=()
for argument; do
    [[ $argument != -- ]] || break
    arguments+=("$argument")
done
exec cmake "${arguments[@]}"

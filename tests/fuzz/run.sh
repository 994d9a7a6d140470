#!/usr/bin/env bash
# Fuzzes the native readers of files, or those that are named: FUZZ_S seconds each (6 unless it is set), as many at a time as there
# are cores.
#
#   FUZZ_S=600 tests/fuzz/run.sh journal tokenizer
#
# FUZZ_SEED, if it is set, makes the changes the same in each run that begins with the same inputs. FUZZ_RUNS, if it is set,
# ends each after so many inputs, however long they take: with both, every machine tries the same.
# Begins with what was found before (tests/fuzz/findings), small files of each kind, and the inputs that earlier runs kept in
# build/fuzz/corpus. A finding ends the run; its input is named and can be run again by build/fuzz/fuzz_TARGET FILE. Needs
# the package in `python`, cmake, ninja, clang++ and its compiler-rt (Debian: clang, libclang-rt-dev).
set -euo pipefail
cd "$(dirname "$0")/../.."

targets=("$@")
[ $# -gt 0 ] || targets=(json safetensors dataset adapter journal tokenizer description rows chat)
limit=-max_total_time=${FUZZ_S:-6}
[ -z "${FUZZ_RUNS:-}" ] || limit=-runs=$FUZZ_RUNS
base=build/fuzz
mkdir -p $base
{
  [ -f $base/build.ninja ] || cmake -S tests/fuzz -B $base -G Ninja -DCMAKE_CXX_COMPILER=clang++
  cmake --build $base --target "${targets[@]/#/fuzz_}"
  python tests/support/seed_files.py $base/seeds
} >$base.log 2>&1 || {
  cat $base.log >&2
  exit 1
}

# Files are synced as they are written, which a disk in memory does at once.
memory=$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")
TMPDIR=$(mktemp -d "$memory/mobizo-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export UBSAN_OPTIONS=print_stacktrace=1
fuzz() {  # fuzz TARGET
  mkdir -p $base/corpus/"$1" $base/found
  local log=$base/$1.log inputs=($base/corpus/"$1" $base/seeds/"$1")
  [ ! -d tests/fuzz/findings/"$1" ] || inputs+=(tests/fuzz/findings/"$1")
  $base/fuzz_"$1" -seed="${FUZZ_SEED:-0}" $limit -timeout=25 -rss_limit_mb=2048 -max_len=16384 \
    -use_value_profile=1 -print_final_stats=1 -artifact_prefix=$base/found/"$1"- "${inputs[@]}" >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    return 1
  }
  echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none of them a finding"
}
export -f fuzz
export base limit
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'fuzz {}'

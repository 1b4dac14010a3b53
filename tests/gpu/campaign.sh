#!/usr/bin/env bash
# The board's campaign on a machine with GPUs, until a time limit; the next call goes on where this one stopped.
#
#   LIMIT=540 OUT=/tmp/out PARTS=parts WHEELS=wheels PACKS=packs tests/gpu/campaign.sh TASKS
#
# TASKS is a file with one task a line. Every worker goes through all of them, in order:
#   sweep FILE        runs that are finished, or that another worker has, are left out
#   board FILE        the same, without the runs that have records in this checkout's leaderboards
#   once COMMAND      for the first worker that comes by; $CAMPAIGN is the state folder, $OUT what comes back
#   await DATASET     until that dataset has come, see PARTS
#   alone FILE [...]  a sweep, with further options, for one worker of each GPU, when its others have come to this line
#                     too; they wait for it
# Without it: what the board lacks of leaderboards/sweeps/board.
#
# prepare.sh makes what goes along:
# PARTS   a folder with datasets in parts: NAME.KofN.tar has what `ddbench data add` takes, NAME.strips.KofN.tar has strips
#         (tests/gpu/strips.py). A dataset is added when all its parts have come, be it in several calls, or while workers
#         are busy with another one: move parts here that have been copied whole, and let tasks await the dataset.
# WHEELS  packages that the machine lacks, ddbench's own among them, without its code: that is this checkout's.
# PACKS   what an earlier call has packed.
# LIMIT   seconds for everything but packing; GPUS, as in "0 1", or "cpu cpu" without one.
# WORKERS processes a GPU, 1 by default. Three did 1.2 times as much together under NVIDIA's multi-process service, which
#         is started for them where it is installed; without it they did less. Each run takes the longer for it, and so do
#         the seconds in its record. Beside KIP with the ConvNet's kernel others hardly get on, and MTT beside others does
#         not end in time, whose experts are too large to be packed: both run alone.
# CAMPAIGN is where all that lies between calls (/tmp/ddbench-campaign), OUT where packs go.
set -u
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CAMPAIGN=${CAMPAIGN:-/tmp/ddbench-campaign}
export OUT=${OUT:-$CAMPAIGN/out}
started=$(date +%s)
limit=${LIMIT:-540}
workers=${WORKERS:-1}
python=${PYTHON:-python3}
data=$CAMPAIGN/data runs=$CAMPAIGN/runs site=$CAMPAIGN/site logs=$CAMPAIGN/logs
mkdir -p "$OUT" "$data" "$runs" "$logs" "$CAMPAIGN/parts"

say() { echo "$(($(date +%s) - started)) s: $*"; }
left() { echo $((limit - $(date +%s) + started)); }

if [ -n "${WHEELS:-}" ] && [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    # The entry points are the wheel's; the code is the checkout's, whose commit the records name.
    rm -rf "$site/ddbench" "$site/ddbench_methods"
fi
export PYTHONPATH=$repo:$repo/methods:$site PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export DDBENCH_DATA=$data DDBENCH_RUNS=$runs
ddbench() { "$python" -m ddbench "$@"; }

bring() { # what has come of datasets
    local part file name of place there source
    for part in "${PARTS:-/nowhere}"/*.*of*.tar; do
        [ -e "$part" ] || continue
        file=$(basename "$part" .tar)
        name=${file%%.*} of=${file##*of}
        place=$CAMPAIGN/parts/$name
        if [ -e "$data/$name/manifest.json" ]; then continue; fi
        mkdir -p "$place"
        [ -e "$place.$file" ] || { tar xf "$part" -C "$place" && touch "$place.$file"; } || return 1
        there=$(find "$CAMPAIGN/parts" -maxdepth 1 -name "$name.$name.*" | wc -l)
        if [ "$there" -lt "$of" ]; then continue; fi
        source=$place
        if [[ $file == *.strips.* ]]; then
            source=$CAMPAIGN/parts/$name.npz
            "$python" "$repo/tests/gpu/strips.py" unpack "$place" "$source" || return 1
        fi
        CUDA_VISIBLE_DEVICES='' ddbench data add "$name" "$source" --quiet | grep -E 'title|fingerprint'
        say "$name is there"
    done
}

bring || exit 1
for pack in "${PACKS:-/nowhere}"/runs-*.tar.*; do
    if [ -e "$pack" ]; then tar xf "$pack" -C "$runs" --skip-old-files; fi
done

tasks=${1:+$(realpath "$1")}
if [ -z "$tasks" ]; then
    tasks=$CAMPAIGN/tasks
    for file in "$repo"/leaderboards/sweeps/board/*.toml; do
        case $file in
        *-trajectories.toml | *-kernels.toml) echo "alone $file --recorded leaderboards" ;;
        *) echo "board $file" ;;
        esac
    done >"$tasks"
fi
mkdir -p "$CAMPAIGN/taken"
rm -rf "$CAMPAIGN/turns"

sweep() { # the seconds that are left, a file, and options
    timeout --signal=TERM --kill-after=20 "$1" "$python" -m ddbench sweep "${@:2}" --quiet
}

alone() { # a folder for this turn of a GPU's workers, the number of the worker, a file, and options
    local turn=$1 status
    mkdir -p "$turn/here" && touch "$turn/here/$2"
    until [ "$(find "$turn/here" -type f | wc -l)" -ge "$workers" ] || [ "$(left)" -le 5 ]; do sleep 1; done
    if [ "$(left)" -gt 5 ] && mkdir "$turn/taken" 2>/dev/null; then
        sweep "$(left)" "${@:3}"
        status=$?
        touch "$turn/done"
        return "$status"
    fi
    until [ -e "$turn/done" ] || [ "$(left)" -le 5 ]; do sleep 1; done
}

work() { # the number of the worker, its GPU, and which of the GPUs that is
    local number=0 kind rest seconds taken
    cd "$repo" || exit 1
    if [ "$2" = cpu ]; then export CUDA_VISIBLE_DEVICES=; else export CUDA_VISIBLE_DEVICES=$2; fi
    while read -r kind rest <&3; do
        number=$((number + 1)) seconds=$(left)
        if [ "$seconds" -le 5 ]; then break; fi
        case $kind in
        sweep) sweep "$seconds" "$rest" ;;
        board) sweep "$seconds" "$rest" --recorded leaderboards ;;
        # shellcheck disable=SC2086 # options are words of their own
        alone) alone "$CAMPAIGN/turns/$number.$3" "$1" $rest ;;
        once)
            taken=$CAMPAIGN/taken/$(echo "$rest" | md5sum | cut -c1-12)
            mkdir "$taken" 2>/dev/null || continue
            # What was stopped is for the next call, what failed is not.
            timeout --signal=TERM --kill-after=20 "$seconds" bash -c "$rest" || { [ $? -lt 124 ] || rmdir "$taken"; }
            ;;
        await)
            until [ -e "$data/$rest/manifest.json" ] || [ "$(left)" -le 5 ]; do sleep 1; done
            ;;
        *) continue ;;
        esac
        echo "== $kind $rest: $? after $(($(date +%s) - started)) s"
    done 3<"$tasks" >>"$logs/worker-$1.log" 2>&1
}

if [ "$workers" -gt 1 ] && command -v nvidia-cuda-mps-control >/dev/null; then
    export CUDA_MPS_PIPE_DIRECTORY=${CUDA_MPS_PIPE_DIRECTORY:-$CAMPAIGN/mps} CUDA_MPS_LOG_DIRECTORY=$logs/mps
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    nvidia-cuda-mps-control -d && say "workers share the GPU under the multi-process service"
fi
while sleep 2; do bring || say "a part could not be read; it is tried again"; done &
bringer=$!
gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | tr '\n' ' ')}
number=0
for ((w = 0; w < workers; w++)); do
    place=0
    for gpu in $gpus; do
        work "$number" "$gpu" "$place" &
        number=$((number + 1)) place=$((place + 1))
    done
done
say "$number workers on GPUs $gpus, $(left) s left"
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader,nounits -l 5 >>"$logs/gpus.csv" &
    watcher=$!
fi
for job in $(jobs -p); do
    if [ "$job" != "${watcher:-}" ] && [ "$job" != "$bringer" ]; then wait "$job"; fi
done
kill "$bringer"
if [ -n "${watcher:-}" ]; then kill "$watcher"; fi
if [ -n "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then echo quit | nvidia-cuda-mps-control >/dev/null 2>&1; fi
say "workers have ended"

"$python" "$repo/tests/gpu/pack_runs.py" "$runs" "$OUT"
tar cJf "$OUT/logs.tar.xz" -C "$CAMPAIGN" logs
find "$CAMPAIGN" -maxdepth 1 -name '*.json' -exec cp {} "$OUT" \;
grep -hE '^==|Error|busy|failed' "$logs"/worker-*.log | grep -v 'is being worked on' | sort | uniq -c | sort -rn | tail -n 40
say "done"

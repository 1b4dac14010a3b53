#!/usr/bin/env bash
# Follows a campaign that runs by itself, on a machine that is reached by commands of a few minutes:
#
#   setsid tests/gpu/campaign.sh TASKS >"$CAMPAIGN/said" 2>&1 </dev/null &
#   OUT=out tests/gpu/follow.sh 500
#
# Waits so many seconds, or until the campaign has ended; shows what it and its workers have said; packs what there is of
# runs, and the logs, into OUT. CAMPAIGN and PYTHON are those of campaign.sh. Sweeps that are to be run beside may be
# started meanwhile: a worker of `ddbench sweep` leaves to others what they have begun.
set -u
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
campaign=${CAMPAIGN:-/tmp/ddbench-campaign}
end=$(($(date +%s) + ${1:?seconds to wait}))
while [ "$(date +%s)" -lt "$end" ] && ! grep -qs '^[0-9]* s: done' "$campaign/said"; do sleep 1; done
cat "$campaign/said"
for log in "$campaign"/logs/*.log "$campaign"/logs/gpus.csv; do
    if [ -e "$log" ]; then echo "== $log" && tail -n 4 "$log"; fi
done
echo "$(find "$campaign/runs" -name record.json | wc -l) records"
PYTHONPATH=$repo:$repo/methods:$campaign/site "${PYTHON:-python3}" "$repo/tests/gpu/pack_runs.py" "$campaign/runs" "${OUT:?a folder for packs}"
tar cJf "$OUT/logs.tar.xz" -C "$campaign" logs

#!/usr/bin/env bash
# There: wait.sh SECONDS OUT. Until the chain is done or the time is up; then how far it is, and what there is goes into OUT as files below 16 MB.
set -uo pipefail
home=${SELFSAME_HOME:-/tmp/selfsame}
end=$((SECONDS + $1)) out=$(realpath "$2")
cd "$home"
while [ $SECONDS -lt $end ] && [ ! -e runs/.done ]; do sleep 2; done
cat runs/timeline chain.log
for log in runs/*.log; do echo "-- $log: $(tail -n 1 "$log" | cut -c1-250)"; done
tar c -C src/selfsame/weights mannequin_files | split -b 15m -d --additional-suffix=.part - "$out/weights."
tar cz runs/timeline runs/*.log runs/*/log.csv runs/*/curve.png runs/*/run.json runs/measured > "$out/logs.tgz" 2> /dev/null
ls -la "$out"

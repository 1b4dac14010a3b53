#!/usr/bin/env bash
# A Slurm of one node on this machine, for the tests in this folder: Debian's packages slurm-wlm and munge, started as
# root. Exit code 3, with a line that says why, where that cannot be. `start.sh stop` ends it.
set -euo pipefail
state="${SLURM_TEST_STATE:-/tmp/ddbench-slurm}"

cannot() {
    echo "no Slurm for the tests: $1"
    exit 3
}

if [ "${1:-}" = stop ]; then
    for daemon in slurmd slurmctld; do
        [ -f "$state/$daemon.pid" ] && kill "$(cat "$state/$daemon.pid")" 2>/dev/null || true
    done
    exit 0
fi

[ "$(id -u)" = 0 ] || cannot "it is started as root, and this is $(id -un)"
if ! command -v slurmctld slurmd munged >/dev/null; then
    command -v apt-get >/dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y slurm-wlm munge; } >"${TMPDIR:-/tmp}/apt-slurm.log" 2>&1 ||
        cannot "slurm-wlm and munge could not be installed; see ${TMPDIR:-/tmp}/apt-slurm.log"
fi

mkdir -p "$state/ctld" "$state/d" /run/munge
chown munge /run/munge
[ -f /etc/munge/munge.key ] || mungekey --create >/dev/null 2>&1 || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
chown munge /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
pgrep -x munged >/dev/null || setsid su -s /bin/sh munge -c munged

node="$(hostname -s)"
cat >"$state/slurm.conf" <<CONF
ClusterName=ddbench
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ReturnToService=2
SlurmctldTimeout=30
KillWait=15
MaxArraySize=4
JobRequeue=1
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF

export SLURM_CONF="$state/slurm.conf"
scontrol ping 2>/dev/null | grep -q UP || setsid slurmctld
for _ in $(seq 30); do scontrol ping 2>/dev/null | grep -q UP && break; sleep 1; done
scontrol ping | grep -q UP || cannot "slurmctld does not answer; see $state/slurmctld.log"
pgrep -x slurmd >/dev/null || setsid slurmd
for _ in $(seq 30); do [ "$(sinfo -h -o %t)" = idle ] && break; sleep 1; done
[ "$(sinfo -h -o %t)" = idle ] || cannot "the node is $(sinfo -h -o %t); see $state/slurmd.log"
echo "export SLURM_CONF=$state/slurm.conf"

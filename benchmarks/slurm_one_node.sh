#!/bin/sh
# Start a SLURM of one node on this machine, run a command in it, and stop it again. As root, on Debian or Ubuntu, in a container too:
#
#   apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge
#   benchmarks/slurm_one_node.sh havir sweep --slurm ...
#
# Everything is kept in one folder (SLURM_ONE_NODE, /tmp/slurm-one-node when left out): configuration, logs, state. Its processes are neither
# tracked by cgroups nor limited in memory, so that it starts where cgroups belong to somebody else; it measures nothing but that jobs are run.
set -eu
place=${SLURM_ONE_NODE:-/tmp/slurm-one-node}
name=$(hostname -s)
cores=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
mkdir -p "$place/state" "$place/spool" "$place/munge"
chown munge:munge "$place/munge"
chmod 700 "$place/munge"

cat >"$place/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$name
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
ReturnToService=2
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
END
export SLURM_CONF="$place/slurm.conf"

[ -f "$place/munge/key" ] || { dd if=/dev/urandom of="$place/munge/key" bs=128 count=1 2>/dev/null; chown munge:munge "$place/munge/key"; chmod 400 "$place/munge/key"; }
daemons=""
stop() {
    scancel --user=root 2>/dev/null || true
    for process in $daemons; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/munge.socket" \
    --pid-file="$place/munge/munged.pid" --log-file="$place/munge/munged.log" --seed-file="$place/munge/munged.seed" &
daemons="$!"
slurmctld -D -c >"$place/slurmctld.out" 2>&1 &
daemons="$daemons $!"
slurmd -D -c >"$place/slurmd.out" 2>&1 &
daemons="$daemons $!"

tries=0
until sinfo --noheader --states=idle 2>/dev/null | grep -q "$name"; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "SLURM did not start in a minute; its logs are in $place" >&2; exit 1; }
    sleep 1
done
sinfo
"$@"

#!/usr/bin/env bash
# A Slurm of this machine alone, for as long as a command runs:
#
#     tests/sweeps/one_machine_slurm.sh COMMAND...
#
# As root, on Debian or Ubuntu; installs Slurm where it is not there. It has two nodes by name, of eight
# processors by name, and jobs of its partition `urgent` preempt those of `debug`.
# A job that is queued again waits for 15 seconds (cred_expire), not for the usual two minutes.
# Needs no systemd and touches no other Slurm: ports, keys and state are its own, in a folder that goes with it.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "one_machine_slurm.sh: Slurm's daemons want root; try: sudo $0 ..." >&2; exit 2; }
if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
  command -v apt-get >/dev/null || { echo "one_machine_slurm.sh: no Slurm here, and no apt-get" >&2; exit 2; }
  echo "installing Slurm: seconds"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")
export SLURM_CONF=$folder/slurm.conf
port=$((20000 + $$ % 10000))

stop() {
  trap - EXIT
  scancel --full --user=root 2>/dev/null || true
  for daemon in slurmd-* slurmctld munged; do
    for file in "$folder"/$daemon.pid; do
      pid=$(cat "$file" 2>/dev/null) && kill "$pid" && timeout 30 tail --pid="$pid" -f /dev/null || true
    done
  done
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

nodes=("$(hostname -s)" "$(hostname -s)-second")  # the first is where processes of several nodes meet: it resolves
mkdir "$folder"/{munge,state}
chmod 711 "$folder" "$folder/munge"
(umask 077; head -c 1024 /dev/urandom >"$folder/munge/key")

{
  cat <<END
ClusterName=one_machine
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2
END
  for node in "${nodes[@]}"; do
    echo "NodeName=$node NodeAddr=127.0.0.1 Port=$((++port)) CPUs=8 RealMemory=1000 State=UNKNOWN"
  done
  echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=600 State=UP"
  echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 State=UP"
} >"$SLURM_CONF"

munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
slurmctld -c
for node in "${nodes[@]}"; do slurmd -N "$node"; done
ready() { [ "$(sinfo --noheader --Node --partition=debug --states=idle | wc -l)" = "${#nodes[@]}" ]; }
for _ in $(seq 60); do ready && break; sleep 0.5; done
ready || { tail -n 5 "$folder"/*.log >&2; exit 1; }

"$@"

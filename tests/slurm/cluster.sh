#!/usr/bin/env bash
# A SLURM cluster of this machine alone, for tests. Needs root and Debian's slurm-wlm and munge.
#
#   tests/slurm/cluster.sh start FOLDER [CPUS]   # then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/cluster.sh stop FOLDER
set -euo pipefail

FOLDER=$(realpath -m "${2:?usage: cluster.sh start|stop FOLDER [CPUS]}")
CPUS=${3:-$(nproc)}
NODE=$(hostname -s)
PORT=$((20000 + RANDOM % 10000))

stop() {
  for daemon in slurmd slurmctld munged; do
    if [ -f "$FOLDER/$daemon.pid" ]; then kill "$(cat "$FOLDER/$daemon.pid")" 2> /dev/null || true; fi
  done
}

configure() {
  mkdir -p "$FOLDER"/{state,spool,log,munge}
  chmod 755 "$FOLDER"
  chmod 700 "$FOLDER/munge"
  head -c 1024 /dev/urandom > "$FOLDER/munge/key"
  chmod 600 "$FOLDER/munge/key"
  cat > "$FOLDER/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$NODE(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munged.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
KillWait=5
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=$NODE Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:1
CONF
}

start() {
  configure
  export SLURM_CONF=$FOLDER/slurm.conf
  munged --force --key-file="$FOLDER/munge/key" --socket="$FOLDER/munged.socket" \
    --pid-file="$FOLDER/munged.pid" --log-file="$FOLDER/log/munged.log" \
    --seed-file="$FOLDER/munge/seed" 2> "$FOLDER/log/munged.err"
  slurmctld
  slurmd
  local until=$((SECONDS + 20))
  while [ $SECONDS -lt $until ]; do
    if [ "$(timeout 3 sinfo --noheader --format=%T 2> /dev/null)" = idle ]; then return; fi
    sleep 0.2
  done
  echo "the cluster is not idle:" >&2
  tail -n 5 "$FOLDER"/log/slurmctld.log "$FOLDER"/log/slurmd.log >&2
  stop
  exit 1
}

"${1:?usage: cluster.sh start|stop FOLDER [CPUS]}"

#!/usr/bin/env bash
# A Slurm of one node on the loopback, for tests: one_node.sh start FOLDER [CPUS] | stop FOLDER. Needs root, slurm-wlm and munge.
# All lies in FOLDER but links to its settings in /etc/slurm; where the machine has a Slurm of its own, it refuses.
set -euo pipefail
what=$1 dir=$(realpath -m "$2") cpus=${3:-2}
socket=$dir/munge.socket

# What a killed test left: links to settings of ours whose controller no longer runs.
ours() {
    local conf; conf=$(readlink -f /etc/slurm/slurm.conf)
    [ -L /etc/slurm/slurm.conf ] && grep -q '^ClusterName=one$' "$conf" && ! kill -0 "$(cat "$(dirname "$conf")/slurmctld.pid" 2>/dev/null || echo 99999999)" 2>/dev/null
}

start() {
    if [ -e /etc/slurm/slurm.conf ] && ! ours; then echo 'This machine has a Slurm of its own (/etc/slurm/slurm.conf): nothing is started.' >&2; return 1; fi
    mkdir -p "$dir"/{state,spool}
    chmod 755 "$dir"
    host=$(hostname -s)
    head -c 1024 /dev/urandom > "$dir/munge.key"
    chmod 600 "$dir/munge.key"
    munged --force --key-file="$dir/munge.key" --socket="$socket" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    cat > "$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=0
MinJobAge=3600
KillWait=2
SchedulerParameters=sched_min_interval=100000
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=100000 Gres=gpu:$cpus State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
CONF
    # GPUs in name only: a device that is always there, under as many names as there are CPUs
    for i in $(seq "$cpus"); do ln -sf /dev/null "$dir/gpu$i"; echo "NodeName=$host Name=gpu File=$dir/gpu$i"; done > "$dir/gres.conf"
    echo 'CgroupAutomount=no' > "$dir/cgroup.conf"
    mkdir -p /etc/slurm
    for name in slurm gres cgroup; do ln -sf "$dir/$name.conf" "/etc/slurm/$name.conf"; done
    slurmctld
    slurmd
    for _ in $(seq 100); do [ "$(sinfo -h -o %T -n "$host" 2>/dev/null | sort -u)" = idle ] && return; sleep .2; done
    sinfo >&2 || true
    tail -n 5 "$dir"/*.log >&2
    echo 'The node did not come up.' >&2
    return 1
}

stop() {
    if [ "$(readlink /etc/slurm/slurm.conf)" = "$dir/slurm.conf" ]; then    # jobs outlive their daemons
        scancel --user=root --full 2>/dev/null || true
        for _ in $(seq 50); do [ -z "$(squeue -h -t running,completing 2>/dev/null)" ] && break; sleep .2; done
    fi
    for daemon in slurmd slurmctld munged; do [ -f "$dir/$daemon.pid" ] && kill "$(cat "$dir/$daemon.pid")" 2>/dev/null; done
    for name in slurm gres cgroup; do [ "$(readlink "/etc/slurm/$name.conf")" = "$dir/$name.conf" ] && rm "/etc/slurm/$name.conf"; done
    true
}

"$what"

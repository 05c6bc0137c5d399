#!/bin/bash
# Ends the cluster and gives the machine back: no process, mount, link, route, chain or cgroup is left. Below .cluster
# the loaded images and the logs stay (`rm -rf .cluster` takes them too). Safe to repeat, also after a failed start.
source "$(dirname "$0")/cluster.sh"
[ "$(id -u)" = 0 ] || fail "it needs root: sudo make cluster-down"
if [ ! -d "$STATE/pki" ]; then # it is made before anything else and goes last: never touch what another checkout runs
    say "No cluster of this checkout runs."
    exit
fi

pods() { # by Kubernetes, as long as it answers: containers end in order
    if alive kubelet && timeout 5 kubectl get --raw /readyz >/dev/null 2>&1; then
        timeout 90 kubectl delete deployments,statefulsets,daemonsets,jobs,replicasets,pods --all -A \
            --grace-period=1 --timeout=80s >/dev/null 2>&1 || say "  some pods did not end in time: they are killed"
    fi
    stop kubelet 10
    stop kube-proxy 10
    stop coredns 10
}

shims() { # the processes that hold a container for our containerd, by its socket
    local entry command
    for entry in /proc/[0-9]*; do
        # A process may end while it is looked at.
        command=$({ tr '\0' ' ' <"$entry/cmdline"; } 2>/dev/null || true)
        case $command in *containerd-shim*" $SOCKET "*) echo "${entry#/proc/}" ;; esac
    done
}

cgroups() { # kubelet's, of cgroup v2 or of every v1 controller; never those of a cluster inside a container (kind)
    find /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods -depth -type d 2>/dev/null || true
}

leftovers() { # what a pod that did not end has left: its processes by its cgroup, then the shims
    local attempt group
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        for group in $(cgroups); do { xargs -r kill -9 <"$group/cgroup.procs"; } 2>/dev/null || true; done
        shims | xargs -r kill -9 2>/dev/null || true
        if [ -z "$(shims)" ]; then break; fi
        sleep 0.2
    done
    sleep 0.2
    cgroups | xargs -r rmdir 2>/dev/null || true
}

control_plane() {
    stop kube-scheduler 5
    stop kube-controller-manager 5
    stop kube-apiserver 2 # left to itself it waits a minute for open watches
    stop etcd 5
    stop containerd 10
}

mounts() {
    local point
    awk -v below="$STATE/" 'index($2, below) == 1 {print $2}' /proc/mounts | tac | while read -r point; do
        umount "$point" 2>/dev/null || umount -l "$point"
    done
}

chains() { # kube-proxy's, kubelet's and the CNI plugins' rules; every other rule stays
    local tool rules
    for tool in iptables ip6tables; do
        rules=$($tool-save 2>/dev/null || true)
        case $rules in *KUBE-* | *CNI-*) grep -vE 'KUBE-|CNI-' <<<"$rules" | $tool-restore ;; esac
    done
}

network() {
    local link
    for link in $POD_LINK $NODE_LINK; do ip link del $link 2>/dev/null || true; done
    chains
}

files() { # ours in the folders whose place is fixed in containerd, kubelet and the CNI library, then the state folder
    local task id
    for task in "$STATE"/run/io.containerd.runtime.v2.task/k8s.io/*/; do # a container that was killed, not ended
        id=$(basename "$task")
        rm -rf "/run/containerd/runc/k8s.io/$id" /var/lib/cni/results/*-"$id"-*
        if [ -f "$task/address" ]; then rm -f "$(sed 's,^unix://,,' "$task/address")"; fi
    done
    rm -f /var/lib/cni/results/shoal-*
    find /var/log/containers -lname "$STATE/*" -delete 2>/dev/null || true
    rm -f /var/lib/kubelet/device-plugins/kubelet{.sock,_internal_checkpoint}
    rmdir /run/containerd/{runc/k8s.io,runc,s,} /var/lib/kubelet/{device-plugins,} /var/lib/cni/{results,} \
        /var/log/containers 2>/dev/null || true # those that nobody else uses
    rm -rf "$STATE"/{etcd,kubelet,run,cni,opt,kubeconfig,kubectl,bin,log/pods} "$SOCKET" "$SOCKET.ttrpc"
    rm -rf "$STATE/pki"
}

step "pods ended, kubelet and kube-proxy stopped" pods
step "control plane and containerd stopped" control_plane
step "remaining containers ended" leftovers
step "mounts, links, routes and chains removed" eval 'mounts; network; files'
say "Nothing of the cluster runs any more."

#!/bin/bash
# Checks, before anything is changed, that this machine can carry the cluster; says all that is missing at once.
source "$(dirname "$0")/cluster.sh"
problems=()

if [ "$(id -u)" != 0 ]; then problems+=("it needs root: sudo make cluster (or set KUBECONFIG to a cluster of yours)"); fi
if [ "$(uname -s)" != Linux ]; then problems+=("it needs Linux; elsewhere use kind and KUBECONFIG"); fi
case $STATE in *[[:space:]]*) problems+=("the path $STATE has a blank in it: move the checkout") ;; esac
# A Unix socket's path has at most 107 bytes, and containerd and kubelet put theirs below the state folder.
if [ ${#STATE} -gt 60 ]; then problems+=("the path $STATE is longer than 60 characters: move the checkout"); fi

missing=()
needs() { if ! command -v "$1" >/dev/null; then missing+=("$2"); fi; }
needs containerd containerd
needs runc runc
needs /usr/lib/cni/bridge containernetworking-plugins
needs iptables iptables
needs ip iproute2
needs conntrack conntrack
needs ipset ipset
needs ethtool ethtool
needs socat socat
needs openssl openssl
if [ ! -s "$PAUSE" ]; then needs buildah buildah; fi
if [ ${#missing[@]} -gt 0 ]; then
    problems+=("Debian packages are missing: apt-get install -y --no-install-recommends ${missing[*]}")
fi
if [ ! -x "$K8S" ] || [ ! -s "$PAUSE" ]; then
    command -v go >/dev/null || problems+=("Go is missing (1.26 or newer, it builds Kubernetes once): https://go.dev/dl")
fi

room() { # room FOLDER GIGABYTES WHY
    local folder=$1 free
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(($(df --output=avail -k "$folder" | tail -1) / 1048576))
    if [ "$free" -lt "$2" ]; then problems+=("$3 needs $2 GiB free at $folder, there are $free"); fi
}
room "$STATE" 5 "the cluster, without your images,"
if [ ! -x "$K8S" ]; then room "$CACHE" 8 "the build of Kubernetes"; fi

if ! alive etcd && ! alive kube-apiserver && ! alive kubelet && command -v ss >/dev/null; then
    for port in $PORTS; do
        if [ -n "$(ss -Hltn "sport = :$port")" ]; then
            problems+=("port $port is in use: another Kubernetes runs here (make cluster-down in its checkout ends ours)")
        fi
    done
fi

for problem in "${problems[@]}"; do printf 'cluster: %s\n' "$problem" >&2; done
[ ${#problems[@]} -eq 0 ]

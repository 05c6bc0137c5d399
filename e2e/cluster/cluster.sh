# What every script of the cluster shares: addresses, folders, timed steps, background parts. Sourced, never run.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STATE=$(cd "$HERE/../.." && pwd)/.cluster
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/shoal
K8S=$CACHE/k8s-$(cat "$HERE"/{go.mod,go.sum,main.go} | sha256sum | cut -c1-12)
PAUSE=$CACHE/pause-$(sha256sum <"$HERE/pause/main.go" | cut -c1-12).tar
PROGRAMS="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl helm coredns"
NODE_IP=10.89.0.1 # on a bridge of our own: it never changes and is never reachable from outside this machine
POD_NET=10.88.0.0/16 SERVICE_NET=10.96.0.0/16 API_SERVICE_IP=10.96.0.1 DNS_IP=10.96.0.10
NODE_LINK=shoal0 POD_LINK=shoal1
SOCKET=$STATE/containerd.sock
PORTS="6443 2379 2380 10249 10250 10256 10257 10259 1053 8181"
export KUBECONFIG=$STATE/kubeconfig KUBECACHEDIR=$STATE/kubectl PATH=$STATE/bin:/usr/sbin:/sbin:$PATH

say() { printf '%s\n' "$*"; }
fail() { printf 'cluster: %s\n' "$*" >&2; exit 1; }

step() { # step TEXT COMMAND...: runs it and prints how long it took
    local text=$1 begin=${EPOCHREALTIME/[.,]/} took; shift
    "$@"
    took=$((${EPOCHREALTIME/[.,]/} - begin))
    printf '  %-46s %4d.%d s\n' "$text" $((took / 1000000)) $((took % 1000000 / 100000))
}

# A part's command line always names the state folder, so a number reused after a reboot is never taken for ours.
alive() { local pid; pid=$(cat "$STATE/log/$1.pid" 2>/dev/null) && grep -qaF "$STATE/" "/proc/$pid/cmdline" 2>/dev/null; }

start() { # start NAME COMMAND...: in the background, once
    local name=$1; shift
    if alive "$name"; then return; fi
    setsid "$@" >"$STATE/log/$name.log" 2>&1 </dev/null &
    echo $! >"$STATE/log/$name.pid"
}

await() { # await NAME SECONDS COMMAND...: until it succeeds; shows the log of NAME if it never does
    local name=$1 until=$((SECONDS + $2)); shift 2
    until "$@" >/dev/null 2>&1; do
        if ! alive "$name" || ((SECONDS > until)); then
            tail -n 15 "$STATE/log/$name.log" >&2
            fail "$name did not become ready; the whole log is $STATE/log/$name.log"
        fi
        sleep 0.2
    done
}

stop() { # stop NAME SECONDS: asks, and after SECONDS insists
    local pid until=$((SECONDS + $2))
    if alive "$1"; then
        pid=$(cat "$STATE/log/$1.pid")
        kill "$pid"
        while alive "$1" && ((SECONDS < until)); do sleep 0.1; done
        if alive "$1"; then kill -9 "$pid" || true; fi
        while alive "$1"; do sleep 0.1; done
    fi
    rm -f "$STATE/log/$1.pid"
}

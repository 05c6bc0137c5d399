#!/bin/bash
# Brings a single-node Kubernetes up on this machine; what already runs is left as it is.
source "$(dirname "$0")/cluster.sh"
source "$HERE/identity.sh"
source "$HERE/configuration.sh"

folders() {
    local program
    mkdir -p "$STATE"/{bin,log}
    for program in $PROGRAMS; do ln -sfn "$K8S" "$STATE/bin/$program"; done
}

network() { # Service and pod addresses lead to our own bridge from the start: nothing sent to them leaves this machine
    ip link show $NODE_LINK >/dev/null 2>&1 || ip link add $NODE_LINK type bridge
    ip addr replace $NODE_IP/24 dev $NODE_LINK
    ip link set $NODE_LINK up
    ip route replace $SERVICE_NET dev $NODE_LINK
    ip route replace $POD_NET dev $NODE_LINK metric 4000
}

control_plane() {
    local pki=$STATE/pki
    start etcd etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380
    start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --bind-address=$NODE_IP --advertise-address=$NODE_IP --secure-port=6443 --service-cluster-ip-range=$SERVICE_NET \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/accounts.pub" \
        --service-account-signing-key-file="$pki/accounts.key" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged \
        --kubelet-client-certificate="$pki/apiserver-to-kubelet.crt" --kubelet-client-key="$pki/apiserver-to-kubelet.key" \
        --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP
    await kube-apiserver 90 kubectl get --raw /readyz
}

controllers() { # after the API server answers: they give up when it does not
    local pki=$STATE/pki
    start kube-controller-manager kube-controller-manager --bind-address=127.0.0.1 --kubeconfig="$pki/controllers.conf" \
        --authentication-kubeconfig="$pki/controllers.conf" --authorization-kubeconfig="$pki/controllers.conf" \
        --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" \
        --use-service-account-credentials --allocate-node-cidrs=false --leader-elect=false
    start kube-scheduler kube-scheduler --bind-address=127.0.0.1 --kubeconfig="$pki/scheduler.conf" \
        --authentication-kubeconfig="$pki/scheduler.conf" --authorization-kubeconfig="$pki/scheduler.conf" --leader-elect=false
}

containers() {
    start containerd containerd -c "$STATE/containerd.toml"
    await containerd 60 ctr -a "$SOCKET" version
    ctr -a "$SOCKET" -n k8s.io image ls -q | grep -qx localhost/pause:1 || "$HERE/load.sh" "$PAUSE" >/dev/null
}

node() {
    start kubelet kubelet --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/pki/kubelet.conf" --hostname-override node1 \
        --node-ip $NODE_IP --root-dir "$STATE/kubelet"
    start kube-proxy kube-proxy --config "$STATE/proxy.yaml"
    await kubelet 90 kubectl wait --for=condition=Ready node/node1 --timeout=2s
}

dns() {
    kubectl apply -f "$HERE/dns.yaml" >/dev/null
    start coredns coredns -conf "$STATE/Corefile"
    await coredns 60 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8181; printf "GET /ready HTTP/1.0\r\n\r\n" >&3; grep -q "200 OK" <&3'
    await kube-controller-manager 60 kubectl -n default get serviceaccount default
}

say "Kubernetes on this machine (state: $STATE)"
step "root, packages, disk and ports checked" bash "$HERE/preflight.sh"
step "binary and pause image in the cache" bash "$HERE/build.sh"
folders
step "certificates and configuration" eval 'identities; configuration'
step "bridge and routes" network
step "etcd and API server" control_plane
step "controller manager and scheduler" controllers
step "containerd" containers
step "kubelet and kube-proxy: node Ready" node
step "cluster DNS" dns
say "Ready. export KUBECONFIG=$KUBECONFIG PATH=$STATE/bin:\$PATH    End it: make cluster-down"

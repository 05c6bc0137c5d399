# The configuration files of the parts that want files. Sourced by up.sh; written anew each time.

configuration() {
    mkdir -p "$STATE/cni/conf"
    cat >"$STATE/cni/conf/10-shoal.conflist" <<X
{"cniVersion": "0.4.0", "name": "shoal", "plugins": [
  {"type": "bridge", "bridge": "$POD_LINK", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$STATE/cni/addresses", "ranges": [[{"subnet": "$POD_NET"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
X
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc could not lower oom_score_adj, and no container would start.
    cat >"$STATE/containerd.toml" <<X
version = 2
root = "$STATE/containerd"
state = "$STATE/run"
[grpc]
  address = "$SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
X
    # No image garbage collection: images come from archives, not from a registry that could bring them back.
    cat >"$STATE/kubelet.yaml" <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://$SOCKET
podLogsDir: $STATE/log/pods
volumePluginDir: $STATE/opt/volumes
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $STATE/pki/kubelet.crt
tlsPrivateKeyFile: $STATE/pki/kubelet.key
failSwapOn: false
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
syncFrequency: 10s
X
    cat >"$STATE/proxy.yaml" <<X
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: node1
clientConnection: {kubeconfig: $STATE/pki/proxy.conf}
clusterCIDR: $POD_NET
healthzBindAddress: 127.0.0.1:10256
conntrack: {maxPerCore: 0}
X
    cat >"$STATE/Corefile" <<X
.:1053 {
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $STATE/pki/coredns.conf shoal
  }
  cache 5
  loadbalance
}
X
}

# Who is who in the cluster: one authority, a certificate and a kubeconfig for each part. Sourced by up.sh.

certificate() { # certificate NAME SUBJECT [ALTERNATIVE NAMES]
    local key=$STATE/pki/$1.key request=$STATE/pki/$1.csr
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$key" -out "$request" -subj "$2" 2>/dev/null
    openssl x509 -req -in "$request" -CA "$STATE/pki/ca.crt" -CAkey "$STATE/pki/ca.key" -CAcreateserial -days 3650 \
        -out "$STATE/pki/$1.crt" -extfile <(echo "subjectAltName=${3:-DNS:none}") 2>/dev/null
}

kubeconfig() { # kubeconfig CERTIFICATE FILE: self-contained, it may be copied elsewhere on this machine
    local pki=$STATE/pki
    (umask 077 && cat >"$2") <<X
apiVersion: v1
kind: Config
clusters: [{name: shoal, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 <"$pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 <"$pki/$1.crt"), client-key-data: $(base64 -w0 <"$pki/$1.key")}}]
contexts: [{name: shoal, context: {cluster: shoal, user: $1}}]
current-context: shoal
X
}

identities() {
    local part pki=$STATE/pki
    if [ -f "$KUBECONFIG" ]; then return; fi
    mkdir -p -m 700 "$pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$pki/ca.key" -out "$pki/ca.crt" \
        -days 3650 -subj /CN=shoal-ca 2>/dev/null
    openssl genrsa -out "$pki/accounts.key" 2048 2>/dev/null
    openssl rsa -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>/dev/null
    certificate apiserver /CN=kube-apiserver \
        "IP:$NODE_IP,IP:127.0.0.1,IP:$API_SERVICE_IP,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    certificate apiserver-to-kubelet /O=system:masters/CN=apiserver-to-kubelet
    certificate controllers /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate kubelet /O=system:nodes/CN=system:node:node1 "IP:$NODE_IP,DNS:node1"
    certificate proxy /CN=system:kube-proxy
    certificate coredns /CN=system:coredns
    certificate admin /O=system:masters/CN=admin
    for part in controllers scheduler kubelet proxy coredns; do kubeconfig $part "$pki/$part.conf"; done
    kubeconfig admin "$KUBECONFIG" # last: it says that all of them are there
}

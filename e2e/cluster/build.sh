#!/bin/bash
# Builds what the cluster runs, once for each version: the k8s binary and the image that holds a pod's namespaces.
# Both go into a cache outside the checkout, so a fresh clone does not pay for them again.
source "$(dirname "$0")/cluster.sh"
VERSION=k8s.io/component-base/version
RELEASE=$(sed -n 's/^\tk8s.io\/kubernetes \(v[0-9.]*\)$/\1/p' "$HERE/go.mod")
MINOR=$(echo "$RELEASE" | cut -d. -f2)

binary() {
    (cd "$HERE" && CGO_ENABLED=0 go build -trimpath -o "$K8S.part" -ldflags "-s -w -X $VERSION.gitVersion=$RELEASE \
        -X $VERSION.gitMajor=1 -X $VERSION.gitMinor=$MINOR" .)
    mv "$K8S.part" "$K8S"
}

image() { # the storage is a folder of its own: nothing of it stays in the machine's
    local work container
    work=$(mktemp -d)
    store() { buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
    (cd "$HERE" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/pause" ./pause)
    container=$(store from scratch)
    store copy -q "$container" "$work/pause" /pause >/dev/null
    store config --entrypoint '["/pause"]' "$container"
    store commit -q "$container" localhost/pause:1 >/dev/null
    store push -q localhost/pause:1 "oci-archive:$PAUSE.part:localhost/pause:1"
    mv "$PAUSE.part" "$PAUSE"
    rm -rf "$work"
}

mkdir -p "$CACHE"
if [ ! -x "$K8S" ]; then
    say "  Building Kubernetes $RELEASE into $K8S: about 8 minutes on 2 cores, once"
    step "Kubernetes built" binary
fi
if [ ! -s "$PAUSE" ]; then step "pause image built" image; fi

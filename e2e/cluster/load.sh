#!/bin/bash
# Puts images into the running cluster. usage: load.sh ARCHIVE|FOLDER...   (as `buildah push X oci-archive:FILE:X` writes
# an archive, and `buildah push X oci:FOLDER:X` a folder, of which only what containerd lacks is read)
source "$(dirname "$0")/cluster.sh"
images() { ctr -a "$SOCKET" -n k8s.io "$@"; }

folder() {
    local blob wanted=$(mktemp)
    images content ls -q | sed 's,:,/,;s,^,blobs/,' | sort >"$wanted.there"
    (cd "$1" && find blobs -type f) | sort | comm -23 - "$wanted.there" >"$wanted"
    tar -C "$1" -c oci-layout index.json -T "$wanted" | images image import -
    rm "$wanted" "$wanted.there"
}

for source in "$@"; do
    if [ -d "$source" ]; then folder "$source"; else images image import "$source"; fi
done

#!/bin/bash
# Puts images into the running cluster. usage: load.sh ARCHIVE...   (OCI archives, as `buildah push X oci-archive:FILE:X` writes)
source "$(dirname "$0")/cluster.sh"
for archive in "$@"; do ctr -a "$SOCKET" -n k8s.io image import "$archive"; done

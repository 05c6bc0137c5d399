#!/bin/bash
# Builds the images of engine, router and operator without Docker, and hands them to the cluster: into the containerd of
# `make cluster`, or with KUBECONFIG set into the registry $SHOAL_REGISTRY. Writes the chart values that name them to
# .cluster/images.yaml. Base and dependencies are built once and kept in the cache; a code change costs seconds.
GIVEN=${KUBECONFIG:-}
source "$(dirname "$0")/cluster.sh"
PROGRAMS="operator router engine"
SUITE=bookworm
ARCHIVE=http://deb.debian.org
STORE=$CACHE/images # what buildah keeps
BASE=localhost/shoal-base:$SUITE
PATH=$PATH:$HERE/../../.venv/bin # make setup brings uv where there is none

store() { buildah --root "$STORE/storage" --runroot "$STORE/run" --storage-driver overlay "$@"; }
has() { store inspect --type image "$1" >/dev/null 2>&1; }

checks() {
    local program free need=3
    [ "$(id -u)" = 0 ] || fail "images are built as root: sudo make images"
    for program in buildah mmdebstrap uv; do
        command -v $program >/dev/null || fail "$program is missing: apt-get install -y buildah mmdebstrap; pip install uv"
    done
    if [ -n "$GIVEN" ] && [ "$GIVEN" != "$STATE/kubeconfig" ] && [ -z "${SHOAL_REGISTRY:-}" ]; then
        fail "KUBECONFIG names a cluster of yours: set SHOAL_REGISTRY to a registry that its nodes can reach"
    fi
    if [ -z "${SHOAL_REGISTRY:-}" ] && [ ! -S "$SOCKET" ]; then fail "no cluster runs here: make cluster"; fi
    # torch with CUDA is 5.5 GB, three times for a while
    if ! grep -qs "$(requirements engine)" "$STORE/loaded"; then need=20; fi
    free=$(($(df --output=avail -k "$STORE" | tail -1) / 1048576))
    [ "$free" -ge $need ] || fail "the images need $need GiB free at $STORE, there are $free"
}

requirements() { sha256sum <"$HERE/../../$1/requirements.txt" | cut -c1-12; }

context() { # what a build may see, always of the same age: buildah's layer cache looks at times and owners
    local paths="pyproject.toml README.md LICENSE scripts/build-requirements.txt scripts/compile-requirements.txt scripts/compile_router.py crds/shoal_api"
    for program in $PROGRAMS; do paths+=" $program/Dockerfile $program/requirements.txt $program/shoal_$program"; done
    mkdir "$WORK/context"
    (cd "$HERE/../.." && tar -c --mtime=@0 --owner=0 --group=0 --mode=u=rwX,go=rX --exclude=__pycache__ $paths) |
        tar -x -C "$WORK/context"
}

base() { # Debian with Python; certificates of this machine are put over its own while something is fetched
    local container uv version
    if ! has "$BASE"; then
        mmdebstrap --quiet --variant=apt --include=python3,ca-certificates $SUITE "$WORK/base.tar" \
            "deb $ARCHIVE/debian $SUITE main" "deb $ARCHIVE/debian-security $SUITE-security main"
        container=$(store from scratch)
        store add -q "$container" "$WORK/base.tar" / >/dev/null
        store commit -q --rm "$container" "$BASE" >/dev/null
        rm "$WORK/base.tar"
    fi
    uv=$(uv --version | cut -d' ' -f2) # not `command -v uv`: that may be a script of pyenv
    UV=localhost/uv:$uv
    if ! has "$UV"; then
        container=$(store from scratch)
        store copy -q "$container" "$(binary uv)" /uv >/dev/null
        store commit -q --rm "$container" "$UV" >/dev/null
    fi
}

binary() { # binary NAME: the program itself, where the first of that name in PATH is a script of pyenv
    local found
    for found in $(type -ap "$1") "$(pyenv which "$1" 2>/dev/null || true)"; do
        if [ "$(head -c 4 "$found" | tail -c 3)" = ELF ]; then echo "$found"; return; fi
    done
    fail "there is no binary of $1 in PATH"
}

build() { # build PROGRAM
    local certificates=/etc/ssl/certs/ca-certificates.crt log=$STORE/$1.log
    mkdir "$WORK/tmp" # uv's downloads: as large as the layer, gone with the build
    if ! TMPDIR=$WORK/tmp store build --layers --isolation chroot --network host \
        --build-arg "BASE=$BASE" --build-arg "UV=$UV" \
        --build-arg "SSL_CERT_FILE=$certificates" --volume $certificates:$certificates:ro \
        --file "$WORK/context/$1/Dockerfile" --iidfile "$WORK/$1.id" --tag "localhost/shoal-$1" "$WORK/context" \
        >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        fail "the image of $1 was not built; the whole log is $log"
    fi
    rm -rf "$WORK/tmp"
}

tag() { sed 's/^sha256://' "$WORK/$1.id" | cut -c1-12; } # tag PROGRAM: new code, new tag, so that the chart rolls its pods

hand_over() { # only what the other side lacks is written
    local program images=()
    for program in $PROGRAMS; do
        if [ -n "${SHOAL_REGISTRY:-}" ]; then
            store push -q "localhost/shoal-$program" "docker://$SHOAL_REGISTRY/shoal-$program:$(tag "$program")"
        else
            images+=("localhost/shoal-$program:$(tag "$program")=$(sed 's/^sha256://' "$WORK/$program.id")")
        fi
    done
    if [ ${#images[@]} -gt 0 ]; then
        ctr -a "$SOCKET" -n k8s.io content ls -q >"$WORK/known"
        python3 "$HERE/stream.py" "$STORE/storage" "$WORK/known" "${images[@]}" | "$HERE/load.sh" - >/dev/null
    fi
    requirements engine >"$STORE/loaded"
}

values() {
    local program
    mkdir -p "$STATE"
    for program in $PROGRAMS; do
        printf '%s: {image: {repository: %s, tag: "%s"}}\n' "$program" "${SHOAL_REGISTRY:-localhost}/shoal-$program" \
            "$(tag "$program")"
    done >"$STATE/images.yaml"
}

mkdir -p "$STORE"
exec 9>"$STORE/lock"
flock -n 9 || { say "Another make images is at work; waiting for it"; flock 9; }
rm -rf "$STORE"/work.* # of one that was killed
WORK=$(mktemp -d "$STORE/work.XXXX")
trap 'rm -rf "$WORK"' EXIT
say "Images of Shoal (kept in $STORE)"
step "root, packages and disk checked" checks
step "sources" context
step "base: Debian $SUITE with Python, uv" base
for program in $PROGRAMS; do step "$program built" build "$program"; done
step "handed to ${SHOAL_REGISTRY:-the cluster}" hand_over
values
say "Ready. helm install shoal charts/shoal --values ${STATE#"$PWD/"}/images.yaml"

#!/bin/sh
# make_base.sh IMAGE: the base image from Debian's packages, for a host that reaches no image registry.
#
# An image of that name that is there already is left alone. The host's certificates go into it, so that pip trusts in a
# build what it trusts here; such a base is for this host, not for a registry.
set -eu
image=$1
if docker image inspect "$image" > /dev/null 2>&1; then
    echo "base image: $image is there already"
    exit 0
fi
if ! command -v debootstrap > /dev/null; then
    echo "error: debootstrap is not installed. On Debian and Ubuntu: apt-get install debootstrap" >&2
    exit 2
fi
if [ "$(id -u)" != 0 ]; then
    echo "error: debootstrap needs root. Run this as root, or pull $image on a host that reaches a registry." >&2
    exit 2
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
echo "base image: $image from Debian's packages"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" > "$root.log" 2>&1 || {
    tail -n 5 "$root.log" >&2
    echo "error: debootstrap failed; the whole log is $root.log" >&2
    exit 1
}
rm -f "$root.log"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/dev/* "$root"/tmp/*
bundle=/etc/ssl/certs/ca-certificates.crt
if [ -f "$bundle" ]; then
    cp "$bundle" "$root$bundle"
fi
tar -C "$root" --sort=name -c . | docker import --change "ENV PIP_CERT=$bundle" --change 'CMD ["python3"]' - "$image" > /dev/null

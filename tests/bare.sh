#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Both commands of the README in a bare Debian, as debootstrap makes it, in a folder with a space and an umlaut: as a user
# who may not install anything (and must be told what is missing), as root, and as that user once all is installed.
#   tests/bare.sh [RELEASE...]    bookworm and trixie, if none is named
#   MIRROR=URL                    where the packages come from
#   BARE_RUN, BARE_TESTS          arguments of run.sh (--steps 20 --sample 40) and of tests/run.sh (-L quick)
# Needs root, debootstrap, a network and half an hour of two cores; no test of tests/run.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}
read -ra run <<< "${BARE_RUN:---steps 20 --sample 40}"
read -ra tests <<< "${BARE_TESTS:--L quick}"
releases=("$@")
if [ ${#releases[@]} -eq 0 ]; then releases=(bookworm trixie); fi
if [ "$(id -u)" -ne 0 ] || ! command -v debootstrap > /dev/null; then
  echo "tests/bare.sh needs root and debootstrap (apt-get install debootstrap)" >&2
  exit 2
fi

bare=$(mktemp -d /var/tmp/zeropp-bare-XXXXXX)
clean() {
  umount "$bare/system/proc" "$bare/system/dev" 2> /dev/null || true
  if ! mountpoint -q "$bare/system/dev"; then rm -rf --one-file-system "$bare"; fi
}
trap clean EXIT
fail() { echo "FAILED in $release: $*"; tail -n 20 "$bare/log" || true; exit 1; }

folder="/srv/größe und raum"
# inside USER COPY SCRIPT ARGUMENTS...: runs a script of that copy of the tree, and keeps what it says
inside() {
  local user=$1 copy=$2
  shift 2
  chroot --userspec="$user" "$bare/system" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 \
    bash "$folder/$copy/$1" "${@:2}" > "$bare/log" 2>&1
}

for release in "${releases[@]}"; do
  echo "$release: a bare system"
  debootstrap --variant=minbase "$release" "$bare/system" "$mirror" > "$bare/log" 2>&1 || fail debootstrap
  cp /etc/resolv.conf "$bare/system/etc/resolv.conf"
  cp /etc/apt/apt.conf.d/*proxy* "$bare/system/etc/apt/apt.conf.d/" 2> /dev/null || true
  mount -t proc proc "$bare/system/proc"
  mount --bind /dev "$bare/system/dev"
  chroot "$bare/system" useradd --create-home somebody
  for copy in root somebody; do
    mkdir -p "$bare/system$folder/$copy"
    git -C "$root" archive HEAD | tar -x -C "$bare/system$folder/$copy"
    chown -R "$copy" "$bare/system$folder/$copy"
  done

  for script in examples/mini_gpt/run.sh tests/run.sh; do
    if inside somebody somebody "$script"; then fail "$script needs nothing"; fi
    grep -q '^Missing: .*cmake.*Install them, then run this again' "$bare/log" || fail "$script does not say what is missing"
  done
  for user in root somebody; do
    inside "$user" "$user" examples/mini_gpt/run.sh "${run[@]}" || fail "run.sh as $user"
    grep -q 'validation bits per byte' "$bare/log" || fail "run.sh as $user does not train"
    echo "$release, $user: $(grep 'validation bits per byte' "$bare/log")"
    inside "$user" "$user" tests/run.sh "${tests[@]}" || fail "tests/run.sh as $user"
    echo "$release, $user: $(grep '% tests passed' "$bare/log")"
  done
  umount "$bare/system/proc" "$bare/system/dev"
  rm -rf --one-file-system "$bare/system"
done
echo "bare: as it should be"

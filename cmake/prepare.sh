# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts a newcomer runs: gets what is missing on a Debian machine, and nothing else.

# need package:what ... -- `what` is a program, or a path that must exist; packages whose `what` is missing are installed.
need() {
  local entry package what missing=()
  for entry in "$@"; do
    package=${entry%%:*} what=${entry#*:}
    if [[ $what == /* ]]; then
      compgen -G "$what" > /dev/null || missing+=("$package")
    else
      command -v "$what" > /dev/null || missing+=("$package")
    fi
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local sudo=() log
  if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
  if ! command -v apt-get > /dev/null || { [ ${#sudo[@]} -gt 0 ] && ! command -v sudo > /dev/null; }; then
    echo "Missing: ${missing[*]} (Debian's names). Install them, then run this again." >&2
    exit 1
  fi
  echo "Installing what is missing: ${missing[*]}"
  log=$(mktemp)
  if ! { "${sudo[@]}" apt-get update && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
         --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    echo "Could not install ${missing[*]}. Run: ${sudo[*]} apt-get install ${missing[*]}" >&2
    exit 1
  fi
  rm -f "$log"
}

# Reads what ninja prints, and shows how far it is: on a terminal in one line, in a file with a line each tenth.
show_build() {
  local line status files=0 all=0 said=-1 terminal=0 begun=$SECONDS
  if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then terminal=1; fi
  while true; do
    status=0
    IFS= read -r -t 1 line || status=$?
    if [ $status -gt 0 ] && [ $status -le 128 ]; then break; fi  # more than 128: a second without a line
    if [ $status -eq 0 ] && [[ $line =~ ^\[([1-9][0-9]*)/([0-9]+)\] ]]; then files=${BASH_REMATCH[1]} all=${BASH_REMATCH[2]}; fi
    if [ $terminal -eq 1 ]; then
      printf '\r  %d of %d steps, %d s' "$files" "$all" $((SECONDS - begun))
    elif [ "$all" -gt 0 ] && [ $((files * 10 / all)) -ne "$said" ]; then
      said=$((files * 10 / all))
      printf '  %d of %d steps, %d s\n' "$files" "$all" $((SECONDS - begun))
    fi
  done
  if [ $terminal -eq 1 ]; then printf '\r\033[K'; fi
}

need_to_build() {
  need cmake:cmake g++:g++ ninja-build:ninja \
    nlohmann-json3-dev:/usr/include/nlohmann/json.hpp libxxhash-dev:/usr/include/xxhash.h \
    libcli11-dev:/usr/include/CLI/CLI.hpp libpcre2-dev:/usr/include/pcre2.h "$@"
}

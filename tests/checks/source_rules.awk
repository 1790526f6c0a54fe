# SPDX-License-Identifier: Apache-2.0
# The rules of the source tree, read line by line: see source_rules.sh. Plain POSIX awk.
# Prints "file:line: sentence" for each violation; exit status 1 if there was one.

BEGIN {
  order = "base, device, kernels | comm, layers, parallel, train, zero.hpp | app"
  level["base"] = 1; level["device"] = 2; level["kernels"] = 3; level["comm"] = 3
  level["layers"] = 4; level["parallel"] = 5; level["train"] = 6; level["zero"] = level["app"] = 7
  split("regex filesystem iostream ranges format source_location", words, " ")
  for (i in words) forbidden_low[words[i]] = 1
  split("regex iostream format source_location", words, " ")
  for (i in words) forbidden[words[i]] = 1
  longest = 300; too_long = 320
}

function fault(line, sentence) {
  printf "%s:%d: %s\n", name, line, sentence
  faults++
}

# The code of a line, without comments, strings and characters.
function code_of(line,    out, c, two, i, quote) {
  out = ""
  quote = ""
  for (i = 1; i <= length(line); i++) {
    c = substr(line, i, 1)
    two = substr(line, i, 2)
    if (in_comment) {
      if (two == "*/") { in_comment = 0; i++ }
    } else if (quote != "") {
      if (c == "\\") i++
      else if (c == quote) quote = ""
    } else if (two == "//") break
    else if (two == "/*") { in_comment = 1; i++ }
    else if (c == "\"" || (c == "'" && out !~ /[0-9a-fA-F]$/)) { quote = c; out = out " " }
    else out = out c
  }
  return out
}

function finish_file() {
  if (name == "" || !header) return
  if (!once) fault(1, "#pragma once is missing")
  if (lines > too_long) fault(lines, "a header of " lines " lines; split it, the rule is " longest)
  else if (lines > longest) printf "%s:%d: warning: a header of %d lines; the rule is %d\n", name, lines, lines, longest
}

FNR == 1 {
  finish_file()
  name = FILENAME
  sub(/^\.\//, "", name)
  header = name ~ /^include\/zeropp\/.*\.hpp$/
  room = name
  sub(/^include\/zeropp\//, "", room)
  sub(/[\/.].*$/, "", room)
  once = in_comment = 0
  if (header) is_header[name] = 1
  if (header && !(room in level))
    fault(1, "there is no room " room "; the rooms are " order)
  if ($0 !~ /SPDX-License-Identifier: Apache-2\.0/ && $0 !~ /^#!/)
    fault(1, "the first line must be the licence: SPDX-License-Identifier: Apache-2.0")
}

{ lines = FNR }
FNR == 2 && shebang && $0 !~ /SPDX-License-Identifier: Apache-2\.0/ {
  fault(2, "the second line must be the licence: SPDX-License-Identifier: Apache-2.0")
}
{ shebang = FNR == 1 && /^#!/ }

header && /^[ \t]*#[ \t]*pragma[ \t]+once/ { once = 1 }

header && /^[ \t]*#[ \t]*include/ {
  target = $0
  if (!match(target, /<[^>]*>/)) {
    fault(FNR, "include with angle brackets from the root: <zeropp/room/header.hpp>")
    next
  }
  target = substr(target, RSTART + 1, RLENGTH - 2)
  if (target ~ /^nlohmann\//) {
    parses_json[name] = 1
    if (level[room] < level["train"]) fault(FNR, "<" target "> stays out of " room)
  }
  if (target ~ /^zeropp\//) {
    includes[name] = includes[name] " include/" target
    other = target
    sub(/^zeropp\//, "", other)
    sub(/[\/.].*$/, "", other)
    if (other != room && (room in level) && level[other] >= level[room])
      fault(FNR, room " may not include " other " (<" target ">): a header includes its own room and lower ones, of " order)
  } else if ((level[room] < level["train"] && (target in forbidden_low)) || (target in forbidden))
    fault(FNR, "<" target "> stays out of " room)
  next
}

header {
  code = code_of($0)
  if (code ~ /^[ \t]*#[ \t]*define/ && code !~ /define[ \t]+(XXH|EIGEN|FMT|OMPI|MPICH)_/)
    fault(FNR, "no macros: a constant, a function or a template says it")
  if (code ~ /(^|[^A-Za-z0-9_.>])(exit|quick_exit|printf|puts|std::abort|std::terminate)[ \t]*\(/)
    fault(FNR, "a library neither ends the process nor prints: throw an Error, or let the caller log")
  if (code ~ /std::(cout|cerr|clog)/)
    fault(FNR, "a library neither ends the process nor prints: throw an Error, or let the caller log")
  # Deduced from a pointer, nvcc's front end may spell the type as GCC 13 refuses it in every signature that has it.
  if (code ~ /std::span[ \t]*[({][ \t]*(&|[A-Za-z_]+,)/)
    fault(FNR, "name the elements of a span of a pointer: std::span<T>{p, n}")
  rest = code
  while (match(rest, /[A-Za-z_][A-Za-z0-9_]*/)) {
    word = substr(rest, RSTART, RLENGTH)
    rest = substr(rest, RSTART + RLENGTH)
    if (word !~ /^_[A-Z]/ && word !~ /__/) continue
    if (name ~ /\/cuda\//) continue  # CUDA's own words begin so
    # what compilers and systems define may be used
    if (word ~ /^__(builtin_|has_|restrict|attribute|extension|m[0-9]|mmask|AVX|FMA|F16C|SSE|ARM|aarch64|x86_64|CUDA|cplusplus|linux|GNUC|clang|SANITIZE|int128|BYTE_ORDER|ORDER|FILE|LINE|VA_|func|PRETTY|cpuid|get_cpuid)/) continue
    if (word ~ /^_(Float16|Exit|OPENMP|GNU_SOURCE|Pragma|SC_.*)$/) continue
    fault(FNR, "the name " word " is reserved for the compiler")
  }
}

# What a header reaches through its includes, itself too: the keys of `reached`.
function reach(start,    todo, now, next_ones, i, j, count) {
  split("", reached)
  reached[start] = 1
  todo = start
  while (todo != "") {
    split(todo, now, " ")
    todo = ""
    for (i in now) {
      count = split(includes[now[i]], next_ones, " ")
      for (j = 1; j <= count; j++)
        if (!(next_ones[j] in reached)) { reached[next_ones[j]] = 1; todo = todo " " next_ones[j] }
    }
  }
}

END {
  finish_file()
  # zero.hpp is the list of the library. TCP, MPI, CUDA, NCCL and tiers come where they are asked for; what parses JSON
  # takes a second to compile and is included by name, and so is app: a trainer of one's own need not pay for it.
  umbrella = "include/zeropp/zero.hpp"
  if (umbrella in is_header) {
    for (h in is_header) {
      reach(h)
      for (other in reached)
        if (other in parses_json) by_name[h] = 1
    }
    for (h in by_name) {  # and what those need
      reach(h)
      for (other in reached) needed[other] = 1
    }
    reach(umbrella)
    if (umbrella in by_name) {
      printf "%s:1: zero.hpp reaches nlohmann/json.hpp, which takes a second to compile\n", umbrella
      faults++
    }
    for (h in is_header)
      if (!(h in reached) && !(h in needed) && h !~ /\/(mpi|tcp|cuda|tiers)\// && h !~ /\/(cuda\.hpp$|app\/)/) {
        printf "%s:1: zero.hpp does not reach it; add it to the list there\n", h
        faults++
      }
  }
  exit faults > 0
}

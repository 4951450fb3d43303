#!/bin/sh
# timed.sh FILE COMPILER ARGUMENT...: compiles and appends a line "SECONDS SOURCE" to FILE. Seconds are the compiler's
# user and system time, which a busy machine changes little. Set as a target's CXX_COMPILER_LAUNCHER.
record=$1
shift
for last; do
  case $last in *.cpp) source=$last ;; esac
done
"$@" || exit
times >"$record.$$" # a builtin: in a pipe it would count a process of its own
awk -v source="${source##*/}" '
  NR == 2 {
    split($1, u, /[ms]/); split($2, s, /[ms]/)
    printf "%6.1f %s\n", 60 * (u[1] + s[1]) + u[2] + s[2], source
  }' \
  "$record.$$" >>"$record"
rm -f "$record.$$"

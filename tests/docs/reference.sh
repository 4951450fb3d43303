#!/bin/sh
# reference.sh DOXYGEN DOXYFILE FOLDER CASE: with the case `reference`, documents the public headers into FOLDER and
# fails on a warning. With `control`, documents control.hpp alone, whose gaps are known, and compares its warnings and
# texts with what is expected.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
doxygen=$1
doxyfile=$2
out=$3
[ -x "$doxygen" ] || { echo "Doxygen is not here"; exit 77; }
rm -rf "$out"
mkdir -p "$out"
warnings="$out/warnings"
{
  cat "$doxyfile"
  [ "$4" != control ] || printf 'INPUT = "%s"\n' "$here/control.hpp"
  printf 'OUTPUT_DIRECTORY = "%s"\nGENERATE_HTML = NO\nGENERATE_XML = YES\nWARN_LOGFILE = "%s"\n' "$out" "$warnings"
} >"$out/Doxyfile"
"$doxygen" "$out/Doxyfile"
sort -u -o "$warnings" "$warnings"

if [ "$4" != control ]; then
  cat "$warnings"
  [ ! -s "$warnings" ]
  exit
fi

sed -n 's|^.*/control.hpp:[0-9]*: warning: ||p' "$warnings" | sort >"$out/found"
sort >"$out/expected" <<'END'
Compound qlora::Bare is not documented.
Member bare(int number) (function) of namespace qlora is not documented.
Member none (variable) of struct qlora::Bare is not documented.
Member unnamed (variable) of struct qlora::Options is not documented.
END
diff "$out/expected" "$out/found" || exit 1
for text in "a header with known gaps" 'Size limit of one &quot;page&quot;; from 1024 to 1e9 bytes.' \
  "Compares all members."; do
  grep -q -F "$text" "$out"/xml/*.xml || { echo "not in the reference: $text"; exit 1; }
done

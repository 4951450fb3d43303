# parts.sh PROGRAM PROGRAM_WITHOUT: the second lacks libcurl, libgumbo, toml++ and Boost, and so three verbs.
set -eu
whole=$1 without=$2
fail() { echo "FAILED: $*" >&2; exit 1; }
says() { # says CODE TEXT arguments...: the lacking program's exit code, and a text on its stderr
  code=$1 text=$2
  shift 2
  got=0
  said=$("$without" "$@" 2>&1 >/dev/null) || got=$?
  [ "$got" = "$code" ] || fail "exit $got, not $code, of: $*"
  case $said in *"$text"*) ;; *) fail "of $*: $said" ;; esac
}
says 4 "without libcurl and libgumbo; on Debian: apt install libcurl4-openssl-dev libgumbo-dev, then" \
  fetch http://example.org/ -o pages.jsonl
packages="libcurl4-openssl-dev libgumbo-dev libtomlplusplus-dev"
says 4 "without libcurl and libgumbo and toml++; on Debian: apt install $packages" run job.toml --no-such
says 4 "without Boost; on Debian: apt install libboost1.81-dev, then" serve models/tiny-chat
says 4 "s3://bucket/model: S3 is not in this build, which is without libxml2 and libcurl" info s3://bucket/model
says 3 "/nowhere" info /nowhere # the other verbs are there
"$without" --help | grep -q "fetch .*Not in this build" || fail "the help does not say that fetch is not there"
for part in libcurl libxml2 libgumbo toml++ Boost; do
  "$without" --version | grep -qF "$part: no" || fail "--version does not say that $part is not there"
  "$whole" --version | grep -qF "$part: yes" || fail "--version does not say that $part is there"
done
for program in "$whole" "$without"; do
  "$program" --version | grep -Eq '^CUDA: (yes|no)$' || fail "--version says nothing of CUDA"
  "$program" --version | grep -Eq '^  adapters of any rank, CPU$' || fail "--version lists no model"
done

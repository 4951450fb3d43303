#!/bin/sh
# census.sh ONE TWIN RANK: compares the functions of three linked programs (census.cpp). They are built without
# optimisation, so that every function the compiler made is still there under its name.
#   shell      a member of a public class, keyed by a whole Config
#   compute    everything else in namespace qlora; code that depends on the model is keyed by a Code
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
  echo "FAILED: $*"
  failed=1
}

# functions PROGRAM: the names of all functions of the library, sorted.
functions() {
  nm -C --defined-only "$1" | sed -n 's/^[0-9a-f]* [tTwW] //p' | grep 'qlora::v0' |
    grep -v '(anonymous namespace)' | sort -u
}
functions "$1" >"$work/one"
functions "$2" >"$work/twin"
functions "$3" >"$work/rank"
added() { comm -13 "$work/one" "$work/$1"; } # those that a variant has beyond the one config
count() { grep -c "$@" || true; }

compute=$(count -v 'Config{' <"$work/one")
echo "one config: $compute compute functions, $(count 'Config{' <"$work/one") in shells"
[ "$compute" -gt 200 ] || fail "so few compute functions: nm shows another program than it should"

more=$(added twin | count -v 'Config{')
shells=$(added twin | count 'Config{')
echo "chat twin of other depth, eps and rope_theta, and a second alpha: $more compute functions more, $shells in shells"
if [ "$more" != 0 ]; then
  fail "they must add none:"
  added twin | grep -v 'Config{'
fi
[ "$shells" -gt 0 ] || fail "the twin is not in the program"
[ "$shells" -le 30 ] || fail "shells are to be thin; this many functions know the whole config"

# XA stands behind X in each row, so the width of a row depends on the cap: views of it, and the backend's members that
# unpack views for the operators, are one line each for every width. What they call must not be among the others.
typed='^([^(]* )?qlora::v0::(Mat<|Cpu<float, \(qlora::v0::Rounding\)0>::(block|adapter_input|linear|linear_backward)<)'
keyed=$(added rank | count 'Lora{16,')
doors=$(added rank | grep -v 'Lora{16,' | count -E "$typed")
others=$(added rank | grep -v 'Config{' | grep -v 'Lora{16,' | count -vE "$typed")
before=$(count 'Lora{8,' <"$work/one")
echo "a second rank cap: $keyed functions more that know the cap (the first has $before)," \
  "$doors views and unpacking members, $others others"
[ "$keyed" -gt 0 ] || fail "the second cap is not in the program, so this census sees nothing"
[ "$keyed" -le "$before" ] || fail "it must not add more than the first cap has"
if [ "$others" != 0 ]; then
  fail "operators of the backend must be shared:"
  added rank | grep -v 'Config{' | grep -v 'Lora{16,' | grep -vE "$typed"
fi
[ "$doors" -le 40 ] || fail "views and unpacking members are one for each width of a row; so many are more than that"
operators='attention|product|linear|rmsnorm|swiglu|adamw|quantize|dequantize'
if added rank | grep -E "^[^(]*qlora::v0::cpu::($operators)"; then
  fail "an operator of the CPU backend was compiled again"
fi
exit $failed

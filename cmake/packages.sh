# Sourced by this project's scripts.
# need_packages NAME... installs missing packages on Debian, as root or with sudo.
# On other systems it does nothing, and the configure step reports what is missing.
need_packages() {
  command -v dpkg-query >/dev/null || return 0
  missing=
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  as_root=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
      echo "missing packages, and neither root nor sudo to install them: apt-get install$missing" >&2
      exit 4
    }
    as_root=sudo
  fi
  echo "installing:$missing"
  $as_root apt-get -qq update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq -y --no-install-recommends install $missing >/dev/null
}

# find_xxhash: where no development package of xxHash is installed, sets XXHASH_ROOT to the header that the Python
# package pyarrow brings, for cmake/FindXXHASH.cmake.
find_xxhash() {
  [ -z "${XXHASH_ROOT:-}" ] && [ ! -e /usr/include/xxhash.h ] || return 0
  XXHASH_ROOT=$(python3 -c 'import pyarrow; print(pyarrow.get_include() + "/arrow/vendored/xxhash")' 2>/dev/null) ||
    return 0
  export XXHASH_ROOT
}

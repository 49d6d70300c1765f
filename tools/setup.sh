#!/usr/bin/env bash
# Makes the virtual environment: called by `make setup`. Says what it does and how long it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
say() { printf '==> %s\n' "$*"; }

"$PYTHON" - <<'P' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Choose one with make PYTHON=python3.11")
P

# Debian's and Ubuntu's Python comes without two things: the module venv, and the shared library that Envoy loads.
missing=$("$PYTHON" - <<'P'
import importlib.util, pathlib, sys, sysconfig
version = f"{sys.version_info.major}.{sys.version_info.minor}"
if importlib.util.find_spec("ensurepip") is None:
    print(f"python{version}-venv")
folders = {sysconfig.get_config_var("LIBDIR"), f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", f"{sys.base_prefix}/lib"}
if not any(list(pathlib.Path(folder).glob(f"libpython{version}.so*")) for folder in folders if folder):
    print(f"libpython{version}")
P
)
if [ -n "$missing" ]; then
  packages=$(echo $missing)
  command="apt-get install -y --no-install-recommends $packages"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then run=""
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null && command -v apt-get >/dev/null; then run="sudo -n"
  else
    echo "The host's Python lacks $packages. Install it with one command, then call make again:" >&2
    echo "    sudo $command" >&2
    exit 1
  fi
  say "installing $packages, which the host's Python lacks"
  $run apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $run $command >/dev/null
fi

say "making $VENV with $("$PYTHON" --version)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"

say "installing maas and its tools (2.6 GB on disk, most of it torch; one to five minutes the first time)"
# One call for everything, so that the constraints hold for all of it at once.
dev=$("$VENV/bin/python" -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"]))')
printf '%s\n' "$dev" >"$VENV/dev.txt"
log="$VENV/pip.log"
if ! "$VENV/bin/python" -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all]' -r "$VENV/dev.txt" >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "pip failed; the whole log is in $log" >&2
  exit 1
fi
touch "$VENV/.installed"
say "ready in $((SECONDS - started)) s"

#!/usr/bin/env bash
# Make the virtual environment FOLDER with the packages of FILE: environment.sh FOLDER FILE
# FILE is one of locks/ (tools/lock.py writes them), or a requirements file. uv installs if it is on PATH, else pip.
# PYTHON names the interpreter; without it, it is the first that is supported on PATH, or one that uv brings.
set -euo pipefail
folder=$1 file=$2
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX # packages would be looked for, or put, elsewhere
[[ $folder == /* ]] || folder=$PWD/$folder
PATH=${PATH//"$folder/bin:"/} # an environment is not made from itself
bin=$folder/bin

fail() {
  echo "error: $*" >&2
  exit 1
}

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2> /dev/null
}

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    is_supported "$PYTHON" || fail "$PYTHON is not Python 3.11 to 3.14, which the locked packages need" \
      "($("$PYTHON" --version 2>&1 || true)); choose another: make setup PYTHON=python3.13"
    echo "$PYTHON"
    return
  fi
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if is_supported "$name"; then
      echo "$name"
      return
    fi
  done
  [[ -n $uv ]] || fail "no Python 3.11 to 3.14 is on PATH (python3: $(python3 --version 2>&1 || true));" \
    "install one (Debian: apt install python3 python3-venv), or uv, which brings its own"
  echo 3.13
}

# A setting of pip, such as index-url, from its variables or files. uv does not read them, and must use the same index.
pip_setting() {
  local variable=PIP_${1^^}
  variable=${variable//-/_}
  echo "${!variable:-$("$bin/python" -m pip config get "global.$1" 2> /dev/null)}"
}

install() {
  if [[ -n $uv ]]; then
    "$uv" pip install --quiet --python "$bin/python" "$@"
  else
    "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

# The build of a package, such as torch==2.13.0+cpu, that the indexes of this machine offer for a pin.
offered() {
  if [[ -n $uv ]]; then
    "$uv" pip install --python "$bin/python" --dry-run --reinstall --no-deps "$1" 2>&1 | sed -n 's/^ + //p'
  else
    "$bin/python" -m pip install --disable-pip-version-check --dry-run --ignore-installed --no-deps "$1" |
      sed -nE 's/^Would install (.*)-([^-]+)$/\1==\2/p'
  fi
}

uv=$(command -v uv || true)
if [[ -n ${PYTHON:-} ]] || ! is_supported "$bin/python"; then
  python=$(find_python)
  version='import sys; print(sys.version_info[:2])'
  if [[ $("$bin/python" -c "$version" 2> /dev/null) != $("$python" -c "$version" 2> /dev/null) || ! -x $bin/python ]]; then
    rm -rf "$folder"
    if [[ -n $uv ]]; then
      "$uv" venv --quiet --seed --python "$python" "$folder" # with pip, which fetches llama.cpp's sources
    else
      "$python" -m venv "$folder" || fail "$python cannot make an environment (Debian: apt install python3-venv)"
    fi
  fi
fi

if [[ -n $uv ]]; then
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$(pip_setting index-url)}
  export UV_INDEX=${UV_INDEX:-$(pip_setting extra-index-url)}
  find_links=$(pip_setting find-links)
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${find_links// /,}}
  export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # pip's: the newest of all indexes
fi

if [[ $file != locks/* ]]; then
  install --requirement "$file"
  exit
fi
"$bin/python" -m tools.lock --check
install --no-deps --require-hashes --requirement "$file"
if [[ $file == locks/main.lock ]]; then
  build=$(offered "$(grep -oE '^torch==[0-9.]+' locks/torch.lock)")
  if [[ $build == *+* ]]; then
    echo "$build is not PyPI's build (it may be the CPU's), so it is installed without a hash"
    install "$build"
  else
    install --no-deps --require-hashes --requirement locks/torch.lock
  fi
fi

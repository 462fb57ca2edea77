#!/bin/sh
# Set up .venv for `make demo` (PyTorch) or `make test` (TensorFlow and the test tools too).
# What is missing on the machine is said before anything is downloaded. A set-up that is up to date costs a second.
set -eu
cd "$(dirname "$0")/.."
stage=${1:?demo or test}
python=${PYTHON:-python3}
venv=.venv

fail() { echo "hvtrain set-up: $*" >&2; exit 3; }

command -v "$python" >/dev/null || fail "'$python' is not there: install the package python3 (3.10 or newer)."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python >= 3.10 is needed, '$python' is $version: install a newer one and run make PYTHON=python3.12 $stage."

state="$version $(cat requirements/*.txt setup.cfg scripts/setup.sh | cksum)"
stamp="$venv/stamp-$stage"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$state" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Python's venv module is not complete: install the package python3-venv (or python$version-venv)."
    PYTHONPATH=. "$python" -m hvtrain.engine.toolchain || exit 3
    if [ -x "$venv/bin/python" ]; then
        have=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' || echo broken)
        [ "$have" = "$version" ] || fail "$venv has Python $have, '$python' is $version: run make clean first."
    else
        "$python" -m venv "$venv"
    fi
    echo "Installing the pinned requirements into $venv ..."
    wanted="-r requirements/base.txt -r requirements/torch.txt"
    [ "$stage" = demo ] || wanted="$wanted -r requirements/keras.txt -r requirements/test.txt"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet $wanted
    "$venv/bin/python" -m pip install --quiet --no-deps -r requirements/examples.txt
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$state" > "$stamp"
fi
"$venv/bin/hvtrain" engine build

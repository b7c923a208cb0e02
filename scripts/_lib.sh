# shellcheck shell=bash
# What every script here stands on: messages, packages, the Rust toolchain, CPUs. To be sourced.
set -euo pipefail
export LC_ALL=C

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$(basename "$0"): $*"
    exit 1
}

# The packages of the named groups in scripts/packages, one per line.
packages() {
    awk -v groups=" $* " '!/^#/ && NF >= 2 && index(groups, " " $1 " ") { print $2 }' "$ROOT/scripts/packages" | sort -u
}

missing_packages() {
    local p
    for p in $(packages "$@"); do
        dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"
    done
}

# Installs what is missing of the named groups.
need_packages() {
    command -v dpkg-query >/dev/null ||
        die "this needs Debian 12 or newer; elsewhere install what scripts/packages lists, and build with cargo"
    local missing sudo=()
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die "as root, run once: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing: ${missing[*]}"
    local log
    log=$(mktemp)
    # The package lists may be absent or old; one refresh, then the install itself.
    if ! { "${sudo[@]}" apt-get update -q &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# 0 when the toolchain in this environment is new enough for the workspace.
rust_is_enough() {
    local have want
    command -v cargo >/dev/null && have=$(cd "$ROOT" && rustc --version 2>/dev/null | awk '{ print $2 }') || return 1
    have=${have%%-*}
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    [[ -n $have && $(printf '%s\n' "$want" "$have" | sort -V | head -n 1) == "$want" ]]
}

# Puts a cargo that is new enough on PATH: the one that is there, else one from rustup.
need_rust() {
    rust_is_enough && return 0
    local home
    for home in "${CARGO_HOME:-$HOME/.cargo}" "${SUDO_USER:+$(getent passwd "${SUDO_USER:-}" | cut -d: -f6)/.cargo}"; do
        [[ -n $home && -x $home/bin/cargo ]] || continue
        PATH=$home/bin:$PATH
        # A rustup that belongs to another user keeps its toolchains beside that user's cargo.
        [[ $home == "$HOME/.cargo" || -n ${RUSTUP_HOME:-} || ! -d ${home%/.cargo}/.rustup ]] ||
            export RUSTUP_HOME=${home%/.cargo}/.rustup
        export PATH
        rust_is_enough && return 0
    done
    say "installing Rust with rustup"
    if command -v rustup >/dev/null; then
        rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2 || true
    else
        curl -fsS --proto '=https' --connect-timeout 20 https://sh.rustup.rs 2>/dev/null |
            sh -s -- -y -q --no-modify-path --profile minimal --component rustfmt --component clippy >&2 || true
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
        export PATH
    fi
    rust_is_enough || die "Sluice needs Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml") or newer, and \
rustup could not be reached: install a toolchain so that cargo is on PATH, then run this again"
}

# Builds the two programs and says where they are in BIN.
build_release() {
    (cd "$ROOT" && cargo build --release --locked -p sluice-control) >&2 || die "the build failed"
    find_bin
}

find_bin() {
    BIN=${CARGO_TARGET_DIR:-$ROOT/target}/release
    export BIN
}

# The CPUs that this process may use, one number per line.
cpus() {
    local list part
    list=$(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)
    for part in ${list//,/ }; do seq "${part%-*}" "${part#*-}"; done
}

# Debian's own interpreter where it is there: a version manager's shim costs a second a call.
PYTHON=/usr/bin/python3
[[ -x $PYTHON ]] || PYTHON=python3
export PYTHON

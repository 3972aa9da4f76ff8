# What the scripts share. Sourced by bash with -euo pipefail.
# shellcheck shell=bash

# shellcheck disable=SC2034  # the scripts use it
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

am_root() { [ "$(id -u)" = 0 ]; }

# The Rust toolchain is often installed for one user and not in the PATH of a fresh shell.
need_cargo() {
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null || die "cargo is missing; install the Rust toolchain (https://rustup.rs)"
}

# Installs the Debian packages that are not there; an ordinary user is told what to install.
need_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || die "this needs Debian's packages: $*"
    for package in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) in
            *' installed') ;;
            *) missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    am_root || die "missing packages; as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    if ! apt_get update || ! apt_get install -y --no-install-recommends "${missing[@]}"; then
        die "apt-get could not install ${missing[*]}"
    fi
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o=Dpkg::Use-Pty=0 "$@" </dev/null >/dev/null; }

# Puts a file in place at once: processes that have mapped the old one keep it.
place() { # SOURCE DESTINATION MODE
    install -m "$3" "$1" "$2.new.$$"
    mv -f "$2.new.$$" "$2"
}

# An ordinary user that exists until drop_user. Sets $user; the home is DIR.
make_user() { # DIR
    user=bpftime-$$
    useradd --create-home --home-dir "$1" --shell /bin/bash "$user"
    chmod 755 "$1"
}

drop_user() {
    local pid
    [ -n "${user:-}" ] || return 0
    # Everything that runs as this user was started by us.
    for pid in $(ps -o pid= -u "$user" || true); do kill -KILL "$pid" 2>/dev/null || true; done
    rm -rf "/tmp/bpftime-$(id -u "$user")"
    userdel "$user" 2>/dev/null || true
    user=''
}

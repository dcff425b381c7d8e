#!/usr/bin/env bash
# Installs what building and testing need. Usage: scripts/setup.sh base|static|static-arm64|power|deny
# Does nothing, quickly, when everything is there; says plainly what it cannot install.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
missing_hint() { say "$1 is missing and cannot be installed from here: $2"; exit 1; }

# command or what `has` knows:debian package:fedora package
need_base=(cc:gcc:gcc links:libc6-dev:glibc-devel make:make:make venv:python3-venv:python3-pip ip:iproute2:iproute nft:nftables:nftables python3:python3:python3 git:git:git)
need_static=(cc:gcc:gcc musl-gcc:musl-tools:musl-gcc readelf:binutils:binutils)
need_arm=(aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu:gcc-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static:qemu-user-static readelf:binutils:binutils)
need_power=(qemu-system-x86_64:qemu-system-x86:qemu-system-x86-core busybox:busybox-static:busybox cpio:cpio:cpio mkfs.ext4:e2fsprogs:e2fsprogs mkfs.xfs:xfsprogs:xfsprogs)

install_packages() {
    local -a packages=("$@")
    local -a become=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || missing_hint "${packages[*]}" "not root and no sudo; install the packages by hand"
        become=(sudo)
    fi
    say "installing ${packages[*]}"
    if command -v apt-get >/dev/null; then
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    else
        "${become[@]}" dnf install -y -q "${packages[@]}"
    fi
}

# Is it there, and of use? Debian packs a C compiler apart from the libraries it links, and a Python from its venvs.
has() {
    case "$1" in
        links) echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - 2>/dev/null ;;
        venv) python3 -c 'import ensurepip' 2>/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

need() {
    local column=3 entry
    local -a packages=()
    command -v apt-get >/dev/null && column=2
    PATH="$PATH:/usr/sbin:/sbin"
    for entry in "$@"; do
        has "${entry%%:*}" || packages+=("$(cut -d: -f"$column" <<<"$entry")")
    done
    [ "${#packages[@]}" = 0 ] && return
    command -v apt-get >/dev/null || command -v dnf >/dev/null \
        || missing_hint "${packages[*]}" "neither apt-get nor dnf found; install the equivalent packages"
    install_packages "${packages[@]}"
}

need_rust() {
    command -v cargo >/dev/null \
        || missing_hint "Rust" "install rustup from https://rustup.rs; rust-toolchain.toml then picks the version"
}

need_target() {
    command -v rustup >/dev/null \
        || missing_hint "rustup" "it provides the $1 standard library; install it from https://rustup.rs"
    rustup target list --installed | grep -qx "$1" || rustup target add "$1"
}

case "${1:-base}" in
    base)
        need_rust
        need "${need_base[@]}"
        ;;
    static)
        need_rust
        need "${need_static[@]}"
        need_target x86_64-unknown-linux-musl
        ;;
    static-arm64)
        need_rust
        need "${need_arm[@]}"
        need_target aarch64-unknown-linux-musl
        ;;
    power)
        need_rust
        need "${need_static[@]}" "${need_power[@]}"
        need_target x86_64-unknown-linux-musl
        ;;
    deny)
        need_rust
        command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny
        ;;
    *)
        say "unknown set '$1'; one of base, static, static-arm64, power, deny"
        exit 2
        ;;
esac

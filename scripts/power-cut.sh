#!/usr/bin/env bash
# The store in a virtual machine whose power is cut while it writes. Usage: scripts/power-cut.sh [rounds [ext4|xfs [seed]]]
# Needs qemu, a static busybox, cpio, mkfs and a Debian cloud kernel (fetched by apt-get), the musl target, and no KVM.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
rounds="${1:-30}" fs="${2:-ext4}" seed="${3:-1}"
target_dir="${TARGET_DIR:-$(${CARGO:-cargo} metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')}"
work="$target_dir/power"
mkdir -p "$work"

"${CARGO:-cargo}" build --target x86_64-unknown-linux-musl -p aws-cni-power
power="$target_dir/x86_64-unknown-linux-musl/debug/aws-cni-power"

if [ ! -d "$work/kernel" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && /linux-image/ { print $2; exit }')
    (cd "$work" && rm -f ./*.deb && apt-get download "$package")
    dpkg -x "$work"/linux-image-*.deb "$work/kernel.new"
    mv "$work/kernel.new" "$work/kernel"
fi
kernel=$(echo "$work"/kernel/boot/vmlinuz-*)

# An initial file system of a few megabytes boots faster than a distribution's.
run=$(mktemp -d "$work/run.XXXXXX")
trap 'rm -rf "$run"' EXIT
mkdir -p "$run/root"/{bin,dev,proc,sys,mnt,modules}
cp "$(command -v busybox)" "$run/root/bin/busybox"
cp "$power" "$run/root/power"
strip "$run/root/power"
modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console libcrc32c xfs)
for module in "${modules[@]}"; do
    find "$work/kernel/lib/modules" -name "$module.ko" -exec cp {} "$run/root/modules/" \;
done
cat > "$run/root/init" <<EOF
#!/bin/busybox sh
export PATH=/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
for module in ${modules[*]}; do busybox insmod /modules/\$module.ko 2>/dev/null; done
while [ ! -b /dev/vda ] || [ ! -c /dev/vport*p1 ]; do busybox sleep 0.1; done
busybox mount -t $fs /dev/vda /mnt || { echo "cannot mount"; busybox poweroff -f; }
# Dirty pages go to the disk's cache early and unasked, so that there is something to lose in a cut.
echo 5 > /proc/sys/vm/dirty_writeback_centisecs
echo 5 > /proc/sys/vm/dirty_expire_centisecs
(while :; do busybox dd if=/dev/zero of=/mnt/noise bs=16k count=16 2>/dev/null; busybox sleep 0.02; done) &
# As systemd would: a start that dies of a damaged database is repeated.
for start in 1 2 3; do /power guest /mnt/ipam /dev/vport*p1; done
busybox poweroff -f
EOF
chmod +x "$run/root/init"
(cd "$run/root" && find . | cpio --quiet -o -H newc | gzip -1) > "$run/initrd"

# XFS wants 300 MB; nothing but what is written is stored.
truncate -s 320M "$run/image"
case "$fs" in
    ext4) mkfs.ext4 -q -F "$run/image" ;;
    xfs) mkfs.xfs -q -f "$run/image" ;;
    *) echo "power-cut: no such file system here: $fs" >&2; exit 2 ;;
esac
"$power" rounds "$kernel" "$run/initrd" "$run/image" "$rounds" "$seed"

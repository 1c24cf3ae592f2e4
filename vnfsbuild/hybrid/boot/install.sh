# shellcheck shell=dash
# Runs inside the new root, by the initrd's own busybox: puts /run/vnfs/files in place. Directories that exist keep
# their mode; a file replaces what is there, links included.
set -eu
busybox=/run/vnfs/busybox
cd /run/vnfs/files
$busybox find . -mindepth 1 -type d | $busybox sort | while IFS= read -r path; do
    [ -d "/$path" ] || $busybox mkdir -m "$($busybox stat -c %a "$path")" "/$path"
done
$busybox find . -type f | while IFS= read -r path; do
    $busybox rm -f "/$path"
    $busybox cp -p "$path" "/$path"
done

# shellcheck shell=dash
# From a plan to a root: layers in one memory file system, what the node writes in another, both bounded.

new=/newroot
reserve=128000000

# read_plan FILE: set capsule, version, manifest, tree, release, need, layers ("digest size" lines) and their sum.
# The form is the server's `vnfs-plan 1`; anything else in it is refused, although its digest was right.
read_plan() {
    capsule='' version='' manifest='' tree='' release='' need='' layers='' total=0 ended=''
    read -r line <"$1"
    [ "$line" = "vnfs-plan 1" ] || die "the boot plan $plan is of a kind that this initrd does not know"
    while read -r key value size rest; do
        [ -z "$rest$ended" ] || die "the boot plan $plan is malformed at $key"
        case $key in
        vnfs-plan) ;;
        capsule) is_word "$value" && capsule=$value ;;
        version) is_number "$value" && version=$value ;;
        manifest) is_digest "$value" && manifest=$value ;;
        tree) is_digest "$value" && tree=$value ;;
        kernel) is_word "$value" && release=$value ;;
        memory) is_number "$value" && need=$value ;;
        layer)
            if ! is_digest "$value" || ! is_number "$size"; then
                die "the boot plan $plan is malformed at layer"
            fi
            layers="$layers$value $size
"
            total=$((total + size))
            ;;
        end) ended=yes ;;
        *) die "the boot plan $plan has a line that this initrd does not know: $key" ;;
        esac
    done <"$1"
    for value in "$capsule" "$version" "$manifest" "$tree" "$release" "$need" "$layers" "$ended"; do
        [ -n "$value" ] || die "the boot plan $plan is incomplete"
    done
}

memory() {
    while read -r key value _; do
        [ "$key" != "$1:" ] || echo $((value * 1024))
    done </proc/meminfo
}

check_memory() {
    has=$(memory MemTotal)
    free=$(memory MemAvailable)
    if [ "$has" -lt "$need" ] || [ "$free" -lt $((total + reserve)) ]; then
        die "too little memory: this node has $(megabytes "$has") MB ($(megabytes "$free") MB free), $capsule:$version \
needs $(megabytes "$need") MB ($(megabytes "$total") MB for layers); refusing to boot"
    fi
}

# Fetch, check and mount the layers, base first; $lower becomes overlayfs' list, topmost first.
mount_layers() {
    modprobe -a loop max_loop=64 2>/dev/null || :
    modprobe -a squashfs overlay 2>/dev/null || :
    mkdir -p /run/vnfs/images /run/vnfs/layers
    mount -t tmpfs -o "mode=700,nosuid,nodev,noexec,size=$((total + 4000000))" vnfs-layers /run/vnfs/images
    number=0
    lower=''
    while read -r digest size; do
        [ -n "$digest" ] || continue
        say "fetching layer $number of $capsule:$version, $(megabytes "$size") MB"
        image=/run/vnfs/images/${digest#sha256:}
        [ -e "$image" ] || fetch transfer layer "$digest" "$image" "$size"
        mkdir "/run/vnfs/layers/$number"
        mount -t squashfs -o ro,loop "$image" "/run/vnfs/layers/$number" ||
            die "layer $digest cannot be mounted; can the kernel $release read its compression?"
        lower="$number${lower:+:}$lower"
        number=$((number + 1))
    done <<LAYERS
$layers
LAYERS
}

mount_root() {
    writable=${writable:-$((($(memory MemTotal) - total) / 2))}
    mkdir -p /run/vnfs/rw
    mount -t tmpfs -o "mode=755,size=$writable" vnfs-rw /run/vnfs/rw || die "vnfs.rw=$writable is not a size"
    mkdir /run/vnfs/rw/upper /run/vnfs/rw/work
    chmod 755 /run/vnfs/rw/upper
    # From there, because the kernel reads one page of options, which the whole paths of many layers would not fit.
    cd /run/vnfs/layers
    mount -t overlay -o "lowerdir=$lower,upperdir=/run/vnfs/rw/upper,workdir=/run/vnfs/rw/work,\
redirect_dir=off,metacopy=off" vnfs "$new" || die "the layers of $capsule:$version cannot be laid over each other"
    cd /
    [ -x "$new/sbin/init" ] || [ -L "$new/sbin/init" ] || die "$capsule:$version has no /sbin/init"
    mkdir -p "$new/dev" "$new/proc" "$new/sys" "$new/run" "$new/tmp"
}

# Node files: a tar, checked by its digest. Only files and directories, no set-uid bits, owned by root, and written
# from inside the new root, so that no link of the root leads a write out of it.
apply_files() {
    [ -n "$files" ] || return 0
    mkdir -p /run/vnfs/files
    fetch download "node files" "$files" /run/vnfs/files.tar 16777216
    tar -x -f /run/vnfs/files.tar -C /run/vnfs/files 2>/dev/null || die "node files $files cannot be unpacked"
    strange=$(find /run/vnfs/files ! -type f ! -type d | head -n 1)
    [ -z "$strange" ] || die "node files $files hold something that is neither file nor directory: $strange"
    chown -R 0:0 /run/vnfs/files
    find /run/vnfs/files -exec chmod ug-s,o-t {} +
    cp /bin/busybox /run/vnfs/busybox
    cp "$scripts/install.sh" /run/vnfs/install.sh
    chroot "$new" /run/vnfs/busybox sh /run/vnfs/install.sh || die "node files $files cannot be written"
    rm -rf /run/vnfs/files /run/vnfs/files.tar /run/vnfs/busybox /run/vnfs/install.sh
}

write_provenance() {
    digests=''
    for word in $layers; do
        case $word in sha256:*) digests="$digests${digests:+,}\"$word\"" ;; esac
    done
    cat >/run/vnfs/provenance.json <<JSON
{"capsule":"$capsule","version":$version,"manifest":"$manifest","tree":"$tree","layers":[$digests],\
"kernel":"$(uname -r)","server":"$giver","node":"$mac","booted":"$(date -u +%Y-%m-%dT%H:%M:%SZ)"}
JSON
}

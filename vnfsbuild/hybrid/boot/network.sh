# shellcheck shell=dash
# The network that the firmware booted from: its driver, its interface, an address by DHCP.
# Leaves /run/vnfs/network (KEY=value) and /run/vnfs/interfaces (what ifupdown reads) for the root.

# Load drivers of network hardware only: disks are the root's business. Buses in the order in which they appear.
load_network_drivers() {
    modprobe -q af_packet 2>/dev/null || :
    for device in /sys/bus/pci/devices/*; do
        case $(cat "$device/class" 2>/dev/null) in 0x02*) cat "$device/modalias" ;; esac
    done >/tmp/aliases
    cat /sys/bus/vmbus/devices/*/modalias >>/tmp/aliases 2>/dev/null || :
    load_aliases
    cat /sys/bus/virtio/devices/*/modalias >/tmp/aliases 2>/dev/null || :
    load_aliases
}

load_aliases() {
    sort -u /tmp/aliases | while IFS= read -r alias; do
        modprobe -q "$alias" 2>/dev/null || :
    done
}

# find_interface: set $interface to the one with the address of BOOTIF=, or to the first Ethernet one.
find_interface() {
    for device in /sys/class/net/*; do
        [ "$(cat "$device/type" 2>/dev/null)" = 1 ] || continue
        mac=$(cat "$device/address")
        if [ -z "$bootif" ] || [ "$mac" = "$bootif" ]; then
            interface=${device##*/}
            return 0
        fi
    done
    return 1
}

has_carrier() {
    [ "$(cat "/sys/class/net/$interface/carrier" 2>/dev/null)" = 1 ]
}

configure_network() {
    load_network_drivers
    await 30 find_interface || die "no network interface ${bootif:-at all} appeared; is its driver in the initrd?"
    ip link set lo up
    ip link set "$interface" up || die "cannot bring up $interface ($mac)"
    await 20 has_carrier || say "$interface ($mac) has no link yet; asking for an address all the same"
    for try in 1 2 3 4; do
        # -C: the root's DHCP client sends no client id either, so the server knows both for the same node.
        if udhcpc -i "$interface" -s "$scripts/udhcpc.sh" -n -q -C -t 5 -T 3 >/dev/null 2>&1; then
            return 0
        fi
        say "no DHCP server answered on $interface ($mac), try $try"
        sleep "$(random 5)"
    done
    die "no DHCP server answered on $interface ($mac)"
}

# release_network: the root's udev can give an interface its lasting name only while that is down.
release_network() {
    ip addr flush dev "$interface"
    ip link set "$interface" down
}

#!/bin/busybox sh
# shellcheck shell=dash disable=SC2154  # udhcpc hands over interface, ip, mask, router, dns, domain, hostname
# Called by udhcpc. Its answers come from whoever replied first, so every word is checked before it is written down.

address() {
    case $1 in '' | *[!0-9.]*) return 1 ;; esac
}

name() {
    case $1 in '' | -* | .* | *[!A-Za-z0-9.-]*) return 1 ;; esac
    [ ${#1} -le 253 ]
}

bound() {
    address "$ip" || exit 1
    case $mask in '' | *[!0-9]*) mask=24 ;; esac
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface" || exit 1
    mac=$(cat "/sys/class/net/$interface/address")
    {
        echo "MAC=$mac"
        echo "ADDRESS=$ip/$mask"
    } >/run/vnfs/network
    for gateway in $router; do
        if address "$gateway"; then
            # A server may name a gateway that is not on the link (a /32 from a cloud).
            ip route add "$gateway" dev "$interface" 2>/dev/null
            ip route add default via "$gateway" dev "$interface" && echo "GATEWAY=$gateway" >>/run/vnfs/network
            break
        fi
    done
    : >/etc/resolv.conf
    if name "$domain"; then echo "search $domain" >>/etc/resolv.conf; fi
    for server in $dns; do
        if address "$server"; then
            echo "nameserver $server" >>/etc/resolv.conf
            echo "DNS=$server" >>/run/vnfs/network
        fi
    done
    if name "$hostname"; then
        hostname "$hostname"
        echo "HOSTNAME=$hostname" >>/run/vnfs/network
    fi
    printf 'auto mac/%s=vnfs\niface vnfs inet dhcp\n' "$mac" >/run/vnfs/interfaces
}

case $1 in
deconfig) ip link set "$interface" up ;;
bound | renew) bound ;;
esac
exit 0

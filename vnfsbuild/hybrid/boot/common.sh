# shellcheck shell=dash
# What every part of the boot shares: words on the consoles, the end of a boot that failed, waiting.

# Every console the kernel writes to shows our lines: on a node one never knows which one somebody watches.
say() {
    for console in $(cat /sys/class/tty/console/active 2>/dev/null || echo console); do
        printf 'vnfs: %s\r\n' "$1" >"/dev/$console" 2>/dev/null || :
    done
}

# die MESSAGE: say it, tell the server, and do what vnfs.onfail= asks for. Never returns.
die() {
    trap - EXIT
    say "$1"
    report failed "$1" || :
    case $onfail in
    rescue)
        say "a shell is open on the console; leaving it reboots"
        setsid cttyhack sh
        ;;
    halt)
        say "halting"
        sync
        poweroff -f
        ;;
    *)
        pause=${onfail#reboot}
        pause=${pause#:}
        say "rebooting in ${pause:=60} s"
        sleep "$pause"
        ;;
    esac
    reboot -f
    while :; do sleep 3600; done
}

# random N: a number below N.
random() {
    set -- "$1" "$(od -An -N2 -tu2 /dev/urandom)"
    echo $(($2 % $1))
}

# await SECONDS COMMAND...: run the command every tenth of a second until it succeeds or the time is over.
await() {
    tries=$(($1 * 10))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        usleep 100000
    done
}

is_digest() {
    case $1 in sha256:*) ;; *) return 1 ;; esac
    case ${1#sha256:} in *[!0-9a-f]*) return 1 ;; esac
    [ ${#1} -eq 71 ]
}

is_number() {
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    [ ${#1} -le 15 ]
}

# is_word TEXT: nothing in it that JSON, a shell or a terminal would take for more than text.
is_word() {
    case $1 in '' | *[!A-Za-z0-9._:/@+-]*) return 1 ;; esac
}

megabytes() {
    echo $((($1 + 999999) / 1000000))
}

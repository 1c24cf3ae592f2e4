# shellcheck shell=dash
# Bytes by digest from the servers of vnfs.server=: resumed, retried with jitter over all of them, and checked.
# A digest that does not match is final: asking again does not make bytes trustworthy.

attempts=8
stall=20

# Every node starts with another server, so that a thousand of them spread over all.
shuffle_servers() {
    turns=$(random "$(echo "$servers" | wc -w)")
    while [ "$turns" -gt 0 ]; do
        servers="${servers#* } ${servers%% *}"
        turns=$((turns - 1))
    done
}

size_of() {
    stat -c %s "$1" 2>/dev/null || echo 0
}

# transfer URL FILE SIZE: append what is missing. Ends a transfer that stands still or brings too much.
transfer() {
    wget -q -c -Y off -O "$2" "$1" 2>/dev/null &
    child=$!
    quiet=0
    before=$(size_of "$2")
    while kill -0 "$child" 2>/dev/null; do
        usleep 250000
        now=$(size_of "$2")
        if [ "$now" -gt "$3" ]; then
            kill "$child"
            wait "$child"
            rm -f "$2"
            return 1
        elif [ "$now" -gt "$before" ]; then
            before=$now
            quiet=0
        else
            quiet=$((quiet + 1))
            [ "$quiet" -le $((stall * 4)) ] || kill "$child"
        fi
    done
    wait "$child"
    [ "$(size_of "$2")" -eq "$3" ]
}

# download URL FILE LIMIT: a document whose size we do not know, of at most LIMIT bytes. What breaks off or is longer
# did not arrive; it is no damaged document.
download() {
    rm -f "$2.broken"
    { timeout "$stall" wget -q -Y off -O - "$1" 2>/dev/null || : >"$2.broken"; } | head -c "$3" >"$2"
    [ ! -e "$2.broken" ] && [ -s "$2" ]
}

# fetch HOW KIND DIGEST FILE SIZE: HOW is transfer or download. Dies when no server has it or it is not what it says.
fetch() {
    try=0
    rm -f "$4"
    while :; do
        for server in $servers; do
            if "$1" "$server/blobs/sha256/${3#sha256:}" "$4" "$5"; then
                verify "$2" "$3" "$4"
                giver=$server
                return 0
            fi
        done
        try=$((try + 1))
        [ "$try" -lt "$attempts" ] || die "no server has the $2 $3: asked $servers, $try times"
        limit=$((1 << (try < 5 ? try : 5)))
        wait_for=$((1 + $(random "$limit")))
        say "$2 $3 did not arrive whole; trying again in $wait_for s"
        sleep "$wait_for"
    done
}

verify() {
    got=$(sha256sum "$3")
    got=sha256:${got%% *}
    [ "$got" = "$2" ] || die "$1 $2 is damaged: got $got; refusing to boot"
}

# report EVENT MESSAGE: tell the first server that listens. What it answers does not matter.
report() {
    [ -n "$mac" ] && [ -n "$servers" ] || return 0
    text=$(printf '%s' "$2" | tr -c 'A-Za-z0-9 .,:;/=+@()-' ' ')
    line="{\"event\":\"$1\",\"node\":\"$mac\",\"message\":\"$text\",\"plan\":\"$plan\"}"
    for server in $servers; do
        if timeout 10 wget -q -Y off -O /dev/null --header 'Content-Type: application/json' \
            --post-data "$line" "$server/nodes/$mac/report" 2>/dev/null; then
            return 0
        fi
    done
    return 1
}

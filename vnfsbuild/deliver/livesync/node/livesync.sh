# What livesync runs on a node: one word says what. Needs a POSIX shell, coreutils, findutils, sed, tar, flock, rsync.
# Lists come on standard input, separated by NUL; paths in them begin with ./ and are meant below the root directory.
# Nothing here decides anything: the server compares and plans, this looks and does.
set -eu
umask 077
export LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
run=/run/vnfs
word=$1
shift

# Where files wait must be on the file system of the root, or they could not be renamed into their places.
state_directory() {
    for state in /var/lib/vnfs/livesync /.vnfs/livesync; do
        [ ! -L "$state" ] && mkdir -p "$state" && [ "$(stat -c %d "$state")" = "$(stat -c %d /)" ] && return
    done
    echo "no directory for livesync on the file system of /" >&2
    exit 1
}

# Keep standard input in $1, and believe it only when it is whole: a connection that breaks off looks like an end.
receive() {
    cat >"$1"
    sum=$(sha256sum <"$1")
    [ "${sum%% *}" = "$2" ] || { echo "the list did not arrive whole" >&2; exit 1; }
}

scratch() {
    mkdir -p "$run"
    temporary=$(mktemp -d "$run/livesync.XXXXXX")
    trap 'rm -rf "$temporary"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
}

# Copy the paths of the list $2 from below $1 to below $3, with all attributes and without what is in directories.
copy() {
    rm -f "$state/failed"
    {
        tar --format=posix --no-recursion --numeric-owner --xattrs --xattrs-include='*' -cf - -C "$1" --null -T "$2" ||
            : >"$state/failed"
    } | tar -C "$3" --numeric-owner --xattrs --xattrs-include='*' -xpf -
    [ ! -e "$state/failed" ] || exit 1
}

case $word in
hold) # keep other livesyncs away for as long as the connection lasts
    mkdir -p "$run"
    exec 9>"$run/livesync.lock"
    flock -n 9 || { echo busy; exit 0; }
    # One whose server died may still be taking its last steps.
    exec 8>"$run/livesync-apply.lock"
    flock -w 30 8 || { echo busy; exit 0; }
    exec 8>&-
    find "$run" -maxdepth 1 -name 'livesync.??????' -type d -mmin +60 -exec rm -rf {} +
    echo ready
    exec cat >/dev/null
    ;;

look) # keep a connection open, without the lock
    echo ready
    exec cat >/dev/null
    ;;

inspect) # what the node says it runs, what it has mounted, what was written to it
    limit=$1
    printf 'provenance\0'
    head -c "$limit" "$run/provenance.json" 2>/dev/null | tr -d '\000' || :
    printf '\0release\0%s\0' "$(uname -r)"
    printf 'free\0%s\0' "$(stat -f -c '%a %S' /)"
    printf 'mounts\0'
    tr '\n' '\000' </proc/self/mountinfo
    printf '\0'
    if cd "$run/rw/upper" 2>/dev/null; then
        printf 'upper\0'
        find . -mindepth 1 -printf '%y%P\0'
        printf '\0'
    fi
    for state in /var/lib/vnfs/livesync /.vnfs/livesync; do
        if [ -f "$state/journal" ]; then
            printf 'journal\0'
            cat "$state/journal"
            printf '\0'
            break
        fi
    done
    printf 'end\0'
    ;;

names) # the names that are in each directory of the list
    cd /
    scratch
    receive "$temporary/list" "$1"
    xargs -0r sh -c 'find "$@" -maxdepth 1 -printf "%H\0%P\0" 2>/dev/null || :' sh <"$temporary/list"
    printf 'end\0'
    ;;

stat) # type and attributes of each path of the list, below $2; those that are not there are left out
    cd "$2"
    scratch
    receive "$temporary/list" "$1"
    xargs -0r sh -c \
        'find "$@" -maxdepth 0 -printf "%p\0%y\0%m\0%U\0%G\0%s\0%l\0" 2>/dev/null || :' sh <"$temporary/list"
    printf 'end\0'
    ;;

sums) # content: sha256 of each regular file of the list, below $2
    cd "$2"
    scratch
    receive "$temporary/list" "$1"
    xargs -0r sh -c 'sha256sum -bz -- "$@" 2>/dev/null || :' sh <"$temporary/list"
    printf 'end\0'
    ;;

devices) # numbers of each device node of the list, below $2
    cd "$2"
    scratch
    receive "$temporary/list" "$1"
    xargs -0r sh -c 'stat --printf "%t:%T %n\0" -- "$@" 2>/dev/null || :' sh <"$temporary/list"
    printf 'end\0'
    ;;

xattrs) # extended attributes, as a tar archive: of files (f./path) by empty copies, of anything else (d./path) itself
    cd "$2"
    scratch
    receive "$temporary/list" "$1"
    mkdir "$temporary/files"
    sed -zn 's/^f//p' "$temporary/list" |
        xargs -0r cp --attributes-only --preserve=xattr,links -P --parents -t "$temporary/files" -- 2>/dev/null || :
    sed -zn 's/^f//p' "$temporary/list" >"$temporary/f"
    sed -zn 's/^d//p' "$temporary/list" >"$temporary/d"
    here=$(pwd -P)
    tar --format=posix --no-recursion --hard-dereference --xattrs --xattrs-include='*' -cf - --null \
        -C "$temporary/files" -T "$temporary/f" -C "$here" -T "$temporary/d" 2>/dev/null || :
    ;;

stage) # make the place where files wait, and say where it is
    state_directory
    mkdir -p "$state/stage-$1"
    printf '%s\n' "$state"
    ;;

apply) # take the steps of the list, with the files staged under the name $2, keeping copies under the name $3
    state_directory
    cd "$state"
    exec 8>"$run/livesync-apply.lock"
    flock -n 8 || { echo "another livesync is being applied" >&2; exit 1; }
    receive journal.new "$1"
    sync -f journal.new 2>/dev/null || :
    mv -f journal.new journal
    stage=$state/stage-$2
    export stage
    steps() { sed -zn "s/^$1//p" "$state/journal"; }

    if [ -n "$(steps b | tr '\000' '\n' | head -n 1)" ]; then
        mkdir -p "backup/$3/files"
        steps b >"backup/$3/paths"
        copy / "backup/$3/paths" "backup/$3/files"
    fi
    cd /

    # Each step looks at the directories that lead to its path: a link among them would lead elsewhere.
    guard='
        set -eu
        checked=
        real() {
            parent=${1%/*}
            [ "$parent" != "$checked" ] || return 0
            rest=${parent#.}
            at=.
            while [ -n "$rest" ]; do
                rest=${rest#/}
                at=$at/${rest%%/*}
                case $rest in */*) rest=/${rest#*/} ;; *) rest= ;; esac
                if [ -L "$at" ] || [ ! -d "$at" ]; then
                    printf "%s is no directory\n" "$at" >&2
                    exit 255
                fi
            done
            checked=$parent
        }
    '
    each() { xargs -0r sh -c "$guard for path; do real \"\$path\"; $1; done" sh; }

    steps x | each 'if [ -L "$path" ] || [ ! -d "$path" ]; then rm -f -- "$path"; fi'
    steps y | each 'if [ -d "$path" ] && [ ! -L "$path" ]; then rmdir -- "$path"; fi'
    steps d | each 'if [ -L "$path" ] || [ ! -d "$path" ]; then mkdir -- "$path"; fi'
    steps d >"$state/directories"
    if [ -s "$state/directories" ]; then
        copy "$stage" "$state/directories" /
    fi
    steps f | each 'if [ -e "$stage/$path" ] || [ -L "$stage/$path" ]; then mv -fT -- "$stage/$path" "$path"; fi'
    steps u | each 'if [ -L "$path" ] || [ ! -d "$path" ]; then rm -f -- "$path"; fi'
    # A directory in which something new has appeared meanwhile stays.
    steps r | each 'rmdir --ignore-fail-on-non-empty -- "$path" 2>/dev/null || [ ! -d "$path" ] || :'
    ;;

finish) # say what the node runs from now on, and forget what led there; $2 = reload when units changed
    state_directory
    cd "$run"
    receive .provenance.new "$1"
    chmod 644 .provenance.new
    mv -f .provenance.new provenance.json
    rm -rf "$state"/stage-* "$state/journal" "$state/directories"
    if [ "$2" = reload ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
    ;;

processes) # which control groups run files that were replaced or removed, and which files
    for maps in /proc/[0-9]*/maps; do
        files=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* [^ ]* *\(\/.*\) (deleted)$/\1/p' "$maps" 2>/dev/null | sort -u) || continue
        [ -n "$files" ] || continue
        group=$(sed -n 's/^0:://p; s/^1:name=systemd://p' "${maps%maps}cgroup" 2>/dev/null) || group=
        number=${maps#/proc/}
        printf '%s\0%s\0%s\0' "${number%/maps}" "$group" "$files"
    done
    printf 'end\0'
    ;;

restart) # the units of the list
    scratch
    receive "$temporary/list" "$1"
    xargs -0r systemctl restart -- <"$temporary/list"
    ;;
esac

# shellcheck shell=bash
# The root under test: a store in the scratch directory, templates in it, roots mounted from them.
# Sourced after report.sh. MICA_TEST_SUBJECT=overlay puts the kernel's overlayfs in Mica's place, to
# try a suite itself.

: "${MICA_TEST_SUBJECT:=mica}"
mica=$CARGO_TARGET_DIR/debug/mica
work=$MICA_TEST_SCRATCH/$MICA_TEST_SUITE
export MICA_STORE=$work/store
mkdir -p "$work"
cargo build --locked --quiet

# Both ways to open a file: what the kernel may pass through, and what it may not.
# shellcheck disable=SC2034 # for the suite
modes=(passthrough cached)

# template NAME SOURCE: makes a template of a directory or tar archive.
template() {
    case $MICA_TEST_SUBJECT in
    mica) "$mica" template import "$1" "$2" ;;
    overlay)
        mkdir -p "$work/lower/${1/:/-}"
        if [[ -d $2 ]]; then cp -a "$2/." "$work/lower/${1/:/-}"; else tar -C "$work/lower/${1/:/-}" -xf "$2"; fi
        ;;
    esac
}

# mount_root TEMPLATE NAME MODE: mounts a root on /tmp/NAME, its private layer in $work/NAME.
# MODE read-only has none.
mount_root() {
    local template=$1 name=$2 mode=$3 lower=$work/lower/${1/:/-}
    mkdir -p "/tmp/$name"
    if [[ $MICA_TEST_SUBJECT == overlay ]]; then
        mkdir -p "$work/$name/upper" "$work/$name/work"
        mount -t overlay overlay "/tmp/$name" \
            -o "lowerdir=$lower,upperdir=$work/$name/upper,workdir=$work/$name/work"
        return
    fi
    case $mode in
    passthrough) "$mica" mount "$template" "/tmp/$name" --private "$work/$name" ;;
    cached) "$mica" mount "$template" "/tmp/$name" --private "$work/$name" --no-passthrough ;;
    read-only) "$mica" mount "$template" "/tmp/$name" ;;
    esac
    if [[ $mode == passthrough ]] && ! counted "$name" .status.passthrough >/dev/null; then
        # Linux has it since 6.9; where it has, a mode that is not what it is called is no test.
        [[ $(printf '%s\n' 6.9 "$(uname -r)" | sort -V | head -n 1) != 6.9 ]]
    fi
}

# counted NAME FILTER: what the mount process says of itself, through a filter of jq.
counted() {
    "$mica" info --json "/tmp/$1" | jq --exit-status "$2"
}

# sound NAME: no request of the root panicked or was refused for a broken store, and every object
# still hashes to its name.
sound() {
    [[ $MICA_TEST_SUBJECT == mica ]] || return 0
    counted "$1" '.statistics | .panics == 0 and .io_errors == 0 and .object_faults == 0'
    "$mica" store check --rehash
}

# unmount_root NAME: returns when its mount process has ended.
unmount_root() {
    case $MICA_TEST_SUBJECT in
    mica) "$mica" umount "/tmp/$1" ;;
    overlay) umount "/tmp/$1" ;;
    esac
}

# ext4_disk NAME SIZE: mounts a fresh ext4 on /tmp/NAME, the reference that Mica is compared with.
ext4_disk() {
    truncate -s "$2" "$work/$1.img"
    mkfs.ext4 -q -F -E nodiscard "$work/$1.img"
    mkdir -p "/tmp/$1"
    mount -o loop "$work/$1.img" "/tmp/$1"
}

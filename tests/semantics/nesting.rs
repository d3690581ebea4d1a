//! The kernel's overlayfs on top of a root, as Docker in a container mounts it.

use std::path::Path;

use crate::support::unmount_beneath;
use crate::{Desk, shell};

const MOUNT: &str = "mount -t overlay overlay \
    -o lowerdir=lower,upperdir=up,workdir=work,redirect_dir=on merged\n";

const CHANGES: &str = r#"
    cd merged
    test "$(cat dir/file)" = lower
    echo new > created; mkdir -p made/deep; echo x > made/deep/file
    echo more >> dir/file
    rm doomed; ! test -e doomed
    rm -r whole; mkdir whole; test -z "$(ls whole)"; echo again > whole/other
    mv dir renamed; ! test -e dir
    chmod 600 moved; mv moved moved2
    ln created linked; setfattr -n user.name -v value created
    mknod null c 1 3; mkfifo fifo; ln -s renamed link
"#;

const AFTER: &str = r#"
    cd merged
    test "$(ls | sort | xargs)" = "created fifo link linked made moved2 null renamed whole"
    test "$(cat renamed/file)" = "$(printf 'lower\nmore')"
    test "$(cat link/deep/file)" = deep
    test "$(ls whole)" = other
    test "$(stat -c '%a %h' moved2)" = "600 1"; test "$(stat -c %h created)" = 2
    getfattr --only-values -n user.name linked
    find . -printf '%p %y %m %s\n' | sort
"#;

fn overlayfs_works_on_top(passthrough: bool, place: &str) {
    let desk = Desk::new();
    let root = desk.root("root", passthrough);
    let at = root.path().join(place);
    shell(
        &at,
        "mkdir up work merged lower lower/dir lower/dir/deep lower/whole
         echo lower > lower/dir/file; echo deep > lower/dir/deep/file
         echo x > lower/doomed; echo x > lower/moved; echo x > lower/whole/one",
    );
    let before = in_overlay(&at, &format!("({CHANGES})\n({AFTER})"));
    let again = in_overlay(&at, &format!("({AFTER})"));
    assert_eq!(before, again, "passthrough {passthrough}: remounted");
    root.unmount();
    let root = desk.root("root", passthrough);
    let after = in_overlay(&root.path().join(place), &format!("({AFTER})"));
    assert_eq!(before, after, "passthrough {passthrough}: the root remounted");
}

/// Runs `script` with the overlay mounted.
fn in_overlay(at: &Path, script: &str) -> String {
    shell(at, MOUNT);
    let told = std::panic::catch_unwind(|| shell(at, script));
    unmount_beneath(&at.join("merged"));
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn overlayfs_works_on_top_of_a_root_with_passthrough() {
    overlayfs_works_on_top(true, "srv");
    overlayfs_works_on_top(true, "usr/lib");
}

#[test]
fn overlayfs_works_on_top_of_a_root_without_passthrough() {
    overlayfs_works_on_top(false, "srv");
}

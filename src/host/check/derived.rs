//! What is made of the layers: merged trees and the index. Held against what making it anew
//! gives, and with `fix` replaced by that.

use std::collections::BTreeSet;

use super::{Check, Finding};
use crate::catalog::{Catalog, RootKey};
use crate::host::roots::RootRecord;
use crate::layer::{Derived, Stack};

impl Check<'_> {
    /// Checks the tree of `stack`, whose layers are whole, and the table of that tree.
    pub(super) fn derived(&mut self, owner: &str, stack: &Stack, catalog: Option<&Catalog>) {
        let (tree, stored) = match self.layers.check_tree(stack, self.fix) {
            Ok(checked) => checked,
            Err(source) => {
                let what = format!("the tree of {owner}");
                let finding = Finding::Unusable { what, layer: None, source: source.into() };
                self.of_stacks.push((stack.id(), finding));
                return;
            }
        };
        self.judge_of(stack, stored, || {
            format!("the tree of {owner} is not what its layers merge to")
        });
        let Some(catalog) = catalog else { return };
        match catalog.check_table(&stack.id(), &tree, self.fix) {
            Ok(stored) => {
                self.judge_of(stack, stored, || {
                    format!("the reverse index of {owner} does not fit its tree")
                });
            }
            // Of a tree that was merged just now: it would be a defect, to be told like any other.
            Err(error) => {
                let what = format!("the reverse index of {owner} cannot be made ({error})");
                self.of_stacks.push((stack.id(), Finding::Derived { what }));
            }
        }
    }

    fn judge_of(&mut self, stack: &Stack, stored: Derived, what: impl FnOnce() -> String) {
        if stored == Derived::Wrong {
            self.of_stacks.push((stack.id(), Finding::Derived { what: what() }));
        } else {
            self.judge(stored, what);
        }
    }

    /// Checks what the index says of the private layers of `records` against itself.
    pub(super) fn remembered(&mut self, records: &[RootRecord], catalog: &Catalog) {
        let Some(session) = catalog.session() else { return };
        let known: BTreeSet<RootKey> = records.iter().map(RootRecord::key).collect();
        // An index that cannot be read is deleted when the session ends, as always.
        let stored = session.check(&known, self.fix).unwrap_or(Derived::Replaced);
        self.judge(stored, || "the index of private files does not agree with itself".to_owned());
    }

    pub(super) fn judge(&mut self, stored: Derived, what: impl FnOnce() -> String) {
        match stored {
            Derived::Right | Derived::Absent => {}
            Derived::Wrong => self.checked.findings.push(Finding::Derived { what: what() }),
            Derived::Replaced => self.checked.fixed.push(what()),
        }
    }
}

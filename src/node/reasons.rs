//! Every reason why something is refused, gathered before it is answered.

use super::error::NodeError;

/// What speaks against a request, in the order in which it was found.
#[derive(Debug, Default)]
pub(super) struct Reasons(Vec<NodeError>);

impl Reasons {
    /// What was answered, or none and one more reason.
    pub(super) fn take<T>(&mut self, answered: Result<T, NodeError>) -> Option<T> {
        answered.map_err(|reason| self.0.push(reason)).ok()
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses with every reason, if there is one.
    pub(super) fn refuse(mut self) -> Result<(), NodeError> {
        if self.is_empty() {
            return Ok(());
        }
        let first = self.0.remove(0);
        Err(self.beside(first))
    }

    /// The refusal for `first` and all of these.
    pub(super) fn beside(self, first: NodeError) -> NodeError {
        if self.is_empty() {
            return first;
        }
        NodeError::Several { reasons: std::iter::once(first).chain(self.0).collect() }
    }
}

impl Extend<NodeError> for Reasons {
    fn extend<T: IntoIterator<Item = NodeError>>(&mut self, reasons: T) {
        self.0.extend(reasons);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_as_it_is_and_several_as_a_list() {
        assert!(Reasons::default().refuse().is_ok());
        let mut reasons = Reasons::default();
        assert_eq!(reasons.take(Ok(7)), Some(7));
        assert_eq!(reasons.take(Err::<u8, _>(NodeError::Ending)), None);
        assert!(!reasons.is_empty());
        reasons.extend([NodeError::NoUsersLeft]);
        let told = reasons.refuse().expect_err("two reasons").to_string();
        let lines: Vec<&str> = told.split("\n- ").collect();
        assert_eq!(lines[0], "there are 2 reasons against it:");
        assert_eq!(lines[1], NodeError::Ending.to_string());
        let mut reasons = Reasons::default();
        reasons.extend([NodeError::Ending]);
        assert!(matches!(reasons.refuse(), Err(NodeError::Ending)));
    }
}

//! Readiness as named conditions: the agent is ready while all of them hold, and whoever asks is told what is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Named conditions. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    missing: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Readiness {
    /// Conditions of which none holds yet.
    pub fn new(conditions: &[&str]) -> Self {
        let missing =
            conditions.iter().map(|name| ((*name).to_owned(), Some("not done yet".to_owned()))).collect();
        Self { missing: Arc::new(Mutex::new(missing)) }
    }

    /// Says that a condition holds.
    pub fn ready(&self, condition: &str) {
        self.set(condition, None);
    }

    /// Says that a condition does not hold (any more), and why.
    pub fn not_ready(&self, condition: &str, reason: impl Into<String>) {
        self.set(condition, Some(reason.into()));
    }

    fn set(&self, condition: &str, reason: Option<String>) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(condition.to_owned(), reason);
    }

    /// What is missing: condition and reason. Empty: ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        let conditions = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        conditions.iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?))).collect()
    }

    /// Whether every condition holds.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_must_hold_and_each_can_be_lost_again() {
        let readiness = Readiness::new(&["source", "attached"]);
        let shared = readiness.clone();
        assert_eq!(readiness.missing().len(), 2);
        shared.ready("source");
        assert_eq!(readiness.missing(), [("attached".to_owned(), "not done yet".to_owned())]);
        shared.ready("attached");
        assert!(readiness.is_ready());
        shared.not_ready("attached", "veth1 is bypassed");
        assert_eq!(readiness.missing(), [("attached".to_owned(), "veth1 is bypassed".to_owned())]);
    }
}

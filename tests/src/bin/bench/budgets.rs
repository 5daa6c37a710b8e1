//! What the figures may be: ratios within one run, and whether they were.

use serde_json::{Value, json};

/// How a ratio is bounded.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// One ratio and its bound.
#[derive(Clone, Debug)]
pub struct Budget {
    /// What is compared, in words.
    pub what: String,
    pub ratio: f64,
    pub bound: Bound,
}

impl Budget {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.ratio <= most,
            Bound::AtLeast(least) => self.ratio >= least,
        }
    }
}

/// Shows them.
pub fn show(budgets: &[Budget]) {
    if budgets.is_empty() {
        return;
    }
    println!("\n{:<58} {:>8} {:>16}", "RATIO", "IS", "BUDGET");
    for budget in budgets {
        let bound = match budget.bound {
            Bound::AtMost(most) => format!("at most {most:.2}"),
            Bound::AtLeast(least) => format!("at least {least:.2}"),
        };
        let missed = if budget.is_met() { "" } else { "  MISSED" };
        println!("{:<58} {:>8.3} {bound:>16}{missed}", budget.what, budget.ratio);
    }
}

/// For machines.
pub fn report(budgets: &[Budget]) -> Value {
    let each = budgets.iter().map(|budget| {
        let (key, bound) = match budget.bound {
            Bound::AtMost(most) => ("at_most", most),
            Bound::AtLeast(least) => ("at_least", least),
        };
        json!({"what": budget.what, "ratio": budget.ratio, key: bound, "met": budget.is_met()})
    });
    each.collect()
}

/// Whether all are met.
pub fn are_met(budgets: &[Budget]) -> bool {
    budgets.iter().all(Budget::is_met)
}

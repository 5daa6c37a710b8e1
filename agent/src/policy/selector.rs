//! Selectors in canonical form: what selects alike is equal, so that classes are split by what policies distinguish and
//! not by how they are written.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::model::Labels;

/// A label selector that is understood: every requirement must hold, none is "everything".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(BTreeSet<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

/// Why a selector is not understood: the field within it, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSelector {
    /// `matchExpressions[0].operator`.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl Selector {
    /// Reads a selector as it is written.
    pub fn parse(written: &LabelSelector) -> Result<Self, BadSelector> {
        let labels = written.match_labels.iter().flatten();
        let mut requirements: BTreeSet<Requirement> = labels
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In([value.clone()].into()),
            })
            .collect();
        for (i, expression) in written.match_expressions.iter().flatten().enumerate() {
            let bad = |field: &str, message: String| BadSelector {
                field: format!("matchExpressions[{i}].{field}"),
                message,
            };
            let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
            let operator = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                (name @ ("In" | "NotIn"), true) => {
                    return Err(bad("values", format!("operator {name} needs at least one value")));
                }
                (name @ ("Exists" | "DoesNotExist"), false) => {
                    return Err(bad("values", format!("operator {name} takes no values")));
                }
                (other, _) => {
                    let known = "In, NotIn, Exists or DoesNotExist";
                    return Err(bad("operator", format!("{other:?} is no operator; use {known}")));
                }
            };
            if expression.key.is_empty() {
                return Err(bad("key", "a label key is missing".to_owned()));
            }
            requirements.insert(Requirement { key: expression.key.clone(), operator });
        }
        Ok(Self(requirements))
    }

    /// Whether the labels have what is required. `NotIn` and `DoesNotExist` hold for a label that is absent.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, operator }| match (operator, labels.get(key)) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::In(_) | Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
            (Operator::NotIn(_) | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => true,
        })
    }

    /// Whether nothing is required.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys of the labels that it looks at.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|requirement| requirement.key.as_str())
    }
}

/// Which namespaces a selector of pods looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// This one.
    Named(String),
    /// Those with such labels.
    Labelled(Selector),
}

/// Which service accounts a selector of pods looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Accounts {
    /// Those with one of these names; `None`: any name.
    pub names: Option<BTreeSet<String>>,
    /// Those with such labels.
    pub labels: Selector,
}

/// Pods: by namespace, by their labels and by their service account. All three must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// Where they are.
    pub namespaces: Namespaces,
    /// What labels they have.
    pub labels: Selector,
    /// As whom they run.
    pub accounts: Accounts,
}

impl PodSelector {
    /// Every pod of a namespace.
    pub fn namespace(name: &str) -> Self {
        Self {
            namespaces: Namespaces::Named(name.to_owned()),
            labels: Selector::default(),
            accounts: Accounts::default(),
        }
    }

    /// Whether every pod of the cluster is selected.
    pub fn is_everything(&self) -> bool {
        let Self { namespaces, labels, accounts } = self;
        let everywhere = matches!(namespaces, Namespaces::Labelled(selector) if selector.is_everything());
        everywhere && labels.is_everything() && *accounts == Accounts::default()
    }

    /// Whether a pod in one of the selected namespaces is selected.
    pub fn matches_within(&self, labels: &Labels, account: &str, account_labels: &Labels) -> bool {
        self.labels.matches(labels)
            && self.accounts.names.as_ref().is_none_or(|names| names.contains(account))
            && self.accounts.labels.matches(account_labels)
    }
}

/// A word of a definition: as it is where it cannot be mistaken for punctuation, quoted otherwise.
pub struct Word<'a>(pub &'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// `a, b, c`.
pub fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |values: &BTreeSet<String>| list(values.iter().map(|v| Word(v)));
        for (i, Requirement { key, operator }) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            let key = Word(key);
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", words(values))?,
                Operator::In(values) => write!(f, "{key} in ({})", words(values))?,
                Operator::NotIn(values) => write!(f, "{key} not in ({})", words(values))?,
                Operator::Exists => write!(f, "has {key}")?,
                Operator::DoesNotExist => write!(f, "has no {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespaces, labels, accounts } = self;
        match namespaces {
            Namespaces::Named(name) => write!(f, "pods(namespace {}", Word(name))?,
            Namespaces::Labelled(selector) if selector.is_everything() => write!(f, "pods(every namespace")?,
            Namespaces::Labelled(selector) => write!(f, "pods(namespaces with {selector}")?,
        }
        if !labels.is_everything() {
            write!(f, "; labels {labels}")?;
        }
        if let Some(names) = &accounts.names {
            write!(f, "; accounts {}", list(names.iter().map(|name| Word(name))))?;
        }
        if !accounts.labels.is_everything() {
            write!(f, "; accounts with {}", accounts.labels)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        let values = (!values.is_empty()).then(|| values.iter().map(|v| (*v).to_owned()).collect());
        let requirement = LabelSelectorRequirement { key: key.into(), operator: operator.into(), values };
        LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
    }

    #[test]
    fn each_operator_on_a_label_that_is_wanted_other_and_absent() {
        let (wanted, other, absent) =
            (labels(&[("app", "a")]), labels(&[("app", "c")]), labels(&[("tier", "a")]));
        for (operator, values, expected) in [
            ("In", &["a", "b"][..], [true, false, false]),
            ("NotIn", &["a", "b"], [false, true, true]),
            ("Exists", &[], [true, true, false]),
            ("DoesNotExist", &[], [false, false, true]),
        ] {
            let selector = Selector::parse(&expression("app", operator, values)).unwrap();
            assert_eq!([&wanted, &other, &absent].map(|l| selector.matches(l)), expected, "{operator}");
        }
    }

    #[test]
    fn an_empty_selector_matches_everything_and_all_requirements_must_hold() {
        let everything = Selector::parse(&LabelSelector::default()).unwrap();
        assert!(everything.is_everything() && everything.matches(&labels(&[])));
        let mut both = expression("app", "Exists", &[]);
        both.match_labels = Some(labels(&[("tier", "x")]));
        let both = Selector::parse(&both).unwrap();
        assert!(both.matches(&labels(&[("app", "a"), ("tier", "x")])));
        assert!(!both.matches(&labels(&[("app", "a")])) && !both.matches(&labels(&[("tier", "x")])));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (key, operator, values, field) in [
            ("app", "In", &[][..], "matchExpressions[0].values"),
            ("app", "NotIn", &[], "matchExpressions[0].values"),
            ("app", "Exists", &["a"], "matchExpressions[0].values"),
            ("app", "Gt", &["1"], "matchExpressions[0].operator"),
            ("app", "in", &["a"], "matchExpressions[0].operator"),
            ("", "Exists", &[], "matchExpressions[0].key"),
        ] {
            assert_eq!(
                Selector::parse(&expression(key, operator, values)).unwrap_err().field,
                field,
                "{operator}"
            );
        }
    }

    #[test]
    fn selectors_that_select_alike_are_equal_and_read_alike() {
        let a = LabelSelector { match_labels: Some(labels(&[("app", "a")])), match_expressions: None };
        let b = expression("app", "In", &["a", "a"]);
        let (a, b) = (Selector::parse(&a).unwrap(), Selector::parse(&b).unwrap());
        assert_eq!((&a, a.to_string()), (&b, "app=a".to_owned()));
    }

    #[test]
    fn text_of_different_selectors_differs_whatever_the_labels_contain() {
        let tricky = Selector::parse(&expression("a", "In", &["b, c=d"])).unwrap();
        let mut plain = expression("a", "In", &["b"]);
        plain.match_labels = Some(labels(&[("c", "d")]));
        assert_ne!(tricky.to_string(), Selector::parse(&plain).unwrap().to_string());
    }
}

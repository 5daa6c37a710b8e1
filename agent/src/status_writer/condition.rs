//! The `Accepted` condition: what it says, and whether what is there says it already.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Type of the condition.
const ACCEPTED: &str = "Accepted";
/// The API server refuses messages of more than 32,768 characters, and people do not read that many.
const MAX_MESSAGE: usize = 4096;

/// What became of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The state of the policy that was looked at.
    pub generation: i64,
    /// What of it is not understood: field, what is wrong and what follows. Nothing: all of it is in force.
    pub problems: Vec<String>,
}

impl Verdict {
    fn status(&self) -> &'static str {
        if self.problems.is_empty() { "True" } else { "False" }
    }

    fn reason(&self) -> &'static str {
        if self.problems.is_empty() { "Accepted" } else { "NotUnderstood" }
    }

    fn message(&self) -> String {
        if self.problems.is_empty() {
            return "every part of the policy is understood".to_owned();
        }
        let mut text = String::new();
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            if text.len() + separator.len() + problem.len() > MAX_MESSAGE && index > 0 {
                text.extend(["; and ", &(self.problems.len() - index).to_string(), " more"]);
                break;
            }
            text += separator;
            text.extend(problem.chars().take(MAX_MESSAGE));
        }
        text
    }

    /// The body of a patch of the status that makes the object say this; `None` if it says so already, or is not in the
    /// state that was looked at: then another verdict is on its way.
    pub fn patch(&self, object: &Value, now: Timestamp) -> Option<Value> {
        if object["metadata"]["generation"].as_i64().unwrap_or_default() != self.generation {
            return None;
        }
        // Conditions of others stay as they are, also those that are no conditions to us.
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let at = conditions.iter().position(|condition| condition["type"] == ACCEPTED);
        let before = at.and_then(|at| serde_json::from_value::<Condition>(conditions[at].clone()).ok());
        let kept = before.as_ref().filter(|before| before.status == self.status());
        let condition = Condition {
            type_: ACCEPTED.to_owned(),
            status: self.status().to_owned(),
            reason: self.reason().to_owned(),
            message: self.message(),
            observed_generation: Some(self.generation),
            // Since when the answer has been this one.
            last_transition_time: kept.map_or(Time(now), |before| before.last_transition_time.clone()),
        };
        if before.as_ref() == Some(&condition) {
            return None;
        }
        let condition = serde_json::to_value(&condition).ok()?;
        match at {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
        // With the version: what has changed since is not overwritten.
        let version = object["metadata"]["resourceVersion"].clone();
        Some(json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn good(generation: i64) -> Verdict {
        Verdict { generation, problems: Vec::new() }
    }

    fn bad(generation: i64) -> Verdict {
        Verdict { generation, problems: vec!["spec.egress: a".to_owned(), "spec.ingress: b".to_owned()] }
    }

    /// The object after a patch.
    fn patched(object: &Value, patch: &Value) -> Value {
        let mut object = object.clone();
        object["status"] = patch["status"].clone();
        object
    }

    #[test]
    fn a_condition_is_written_once_and_keeps_its_time_until_the_answer_changes() {
        let object = json!({"metadata": {"generation": 3, "resourceVersion": "7"}});
        let patch = bad(3).patch(&object, at(10)).unwrap();
        let condition = json!({"type": "Accepted", "status": "False", "reason": "NotUnderstood",
            "message": "spec.egress: a; spec.ingress: b", "observedGeneration": 3,
            "lastTransitionTime": "1970-01-01T00:00:10Z"});
        assert_eq!(
            patch,
            json!({"metadata": {"resourceVersion": "7"}, "status": {"conditions": [condition]}})
        );
        let mut written = patched(&object, &patch);
        assert_eq!(bad(3).patch(&written, at(20)), None, "it says so already");
        written["metadata"]["generation"] = 4.into();
        let later = bad(4).patch(&written, at(20)).unwrap();
        let condition = &later["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:10Z", "the answer is the same");
        assert_eq!(condition["observedGeneration"], 4);
        let accepted = good(4).patch(&patched(&written, &later), at(30)).unwrap();
        let condition = &accepted["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["reason"], &condition["lastTransitionTime"]),
            (&json!("True"), &json!("Accepted"), &json!("1970-01-01T00:00:30Z"))
        );
    }

    #[test]
    fn another_state_of_the_policy_is_not_judged_by_this_verdict() {
        let object = json!({"metadata": {"generation": 4, "resourceVersion": "7"}});
        assert_eq!(good(3).patch(&object, at(10)), None);
    }

    #[test]
    fn conditions_of_others_stay_and_one_that_is_none_is_replaced() {
        let other = json!({"type": "Other", "status": "True", "extra": 1});
        let object = json!({"metadata": {"generation": 1, "resourceVersion": "7"},
            "status": {"conditions": [other, {"type": "Accepted"}]}});
        let patch = good(1).patch(&object, at(10)).unwrap();
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!((conditions.len(), &conditions[0]), (2, &other));
        assert_eq!(conditions[1]["status"], "True");
    }

    #[test]
    fn a_message_has_an_end() {
        let problems = (0..10_000).map(|i| format!("spec.ingress.rules[{i}]: wrong")).collect();
        let message = Verdict { generation: 1, problems }.message();
        assert!(message.len() < MAX_MESSAGE + 50 && message.ends_with(" more"), "{}", message.len());
        let long = Verdict { generation: 1, problems: vec!["ü".repeat(10 * MAX_MESSAGE)] };
        assert_eq!(long.message().chars().count(), MAX_MESSAGE);
    }
}
